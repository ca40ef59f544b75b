"""The floors: a room imports only from rooms on lower floors, and the plain-Python rooms never load torch.

Every import statement counts, wherever it stands: deferred inside a function, under TYPE_CHECKING, or as
`import_module("indexshare...")` with a literal name.
"""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "indexshare"
FLOORS = {
    "__main__": 10,
    "cli": 9,
    "sharing": 8,
    "verify": 8,
    "rl": 8,
    "measure": 8,
    "eval": 7,
    "serve": 7,
    "engine": 6,
    "train": 6,
    "step": 5,
    "export": 5,
    "checkpoint": 4,
    "adapt": 4,
    "parallel": 4,
    "model": 3,
    "cache": 2,
    "ops": 1,
    "planner": 1,
    "data": 1,
    "repository": 1,
    "config": 0,
    "text": 0,
}
# `ops` is mathematics on tensors: it knows no configuration, although configuration lies below it.
SELF_CONTAINED = {"ops"}
TORCH_FREE = (
    "indexshare",
    "indexshare.config",
    "indexshare.planner",
    "indexshare.cache.blocks",
    "indexshare.engine.scheduler",
    "indexshare.engine.admission",
    "indexshare.engine.outputs",
    "indexshare.engine.params",
    "indexshare.engine.request",
    "indexshare.engine.structure",
    "indexshare.repository.source_tree",
    "indexshare.serve.run",
    "indexshare.text.answer_parser",
    "indexshare.cli",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] != "shipped")
MODULES = [module_name(p) for p in SOURCES]


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that the module imports, at any depth of nesting."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".") if is_package else module.split(".")[:-1]
                above = here[: len(here) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def wrong_arrows(tree: ast.AST, module: str, is_package: bool) -> list[str]:
    """Imports of this module that go up, sideways, or through the package's own front door."""
    room = module.split(".")[1]
    found = []
    for line, name in imported(tree, module, is_package):
        parts = name.split(".")
        if parts[0] != "indexshare" or name == "indexshare.__version__":
            continue
        target = parts[1] if len(parts) > 1 else ""
        if target == room:
            continue
        if target not in FLOORS:
            found.append(f"{module}:{line}: {name}: import from the room itself, not from the package's front door")
        elif room in SELF_CONTAINED:
            found.append(f"{module}:{line}: {name}: `{room}` imports nothing of the package")
        elif FLOORS[target] >= FLOORS[room]:
            found.append(f"{module}:{line}: {name}: floor {FLOORS[room]} may not import floor {FLOORS[target]}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=MODULES)
def test_imports_only_go_down(path: Path) -> None:
    module = module_name(path)
    if module == "indexshare":
        pytest.skip("the front door names every room, lazily")
    assert module.split(".")[1] in FLOORS, f"{module} is in no room: give it a floor in {Path(__file__).name}"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert wrong_arrows(tree, module, path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source", "number"),
    [
        ("indexshare.cache.paged", "from indexshare.config.model import ModelConfig", 0),
        ("indexshare.cache.paged", "from indexshare.model.glm import GlmMoeDsa", 1),
        ("indexshare.cache.paged", "def f():\n    import indexshare.engine.llm", 1),
        ("indexshare.engine.llm", "if TYPE_CHECKING:\n    from indexshare.train import loop", 1),
        ("indexshare.engine.llm", "from ..train.loop import run", 1),
        ("indexshare.engine.llm", "from .request import Request", 0),
        ("indexshare.engine.llm", "import_module('indexshare.cli.info')", 1),
        ("indexshare.engine.llm", "from indexshare import load_model", 1),
        ("indexshare.engine.llm", "import indexshare", 1),
        ("indexshare.cli.app", "from indexshare import __version__", 0),
        ("indexshare.ops.quant", "from indexshare.config import ModelConfig", 1),
    ],
)
def test_the_test_sees_every_kind_of_import(module: str, source: str, number: int) -> None:
    assert len(wrong_arrows(ast.parse(source), module, is_package=False)) == number


INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)
CPP = sorted(p for p in PACKAGE.rglob("*.[ch]pp") if p.is_file() and not p.name.startswith("."))


@pytest.mark.parametrize("path", CPP, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_includes_only_go_down(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    included = [(path.parent / name).resolve() for name in INCLUDE.findall(path.read_text(encoding="utf-8"))]
    targets = [each.relative_to(PACKAGE).parts[0] for each in included]
    assert [target for target in targets if target != room and FLOORS[target] >= FLOORS[room]] == []


@pytest.mark.parametrize("path", SOURCES, ids=MODULES)
def test_transformers_is_never_imported(path: Path) -> None:
    if path.parent == PACKAGE / "verify" / "workers":
        pytest.skip("runs in a process of its own, to be compared with")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = imported(tree, module_name(path), path.name == "__init__.py")
    assert [line for line, name in names if name.split(".")[0] == "transformers"] == []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module: str) -> None:
    assert importlib.import_module(module).__name__ == module


# numpy comes with torch's own import; a plain-Python room has no use for it either.
BLOCKER = """
import importlib, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "numpy", "safetensors"):
            raise ImportError(f"{name} must not be imported here")
sys.meta_path.insert(0, Refuse())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def torch_free_modules() -> list[str]:
    def plain(module: str) -> bool:
        return module in TORCH_FREE or module.startswith(("indexshare.config.", "indexshare.planner."))

    return [m for m in MODULES if plain(m)]


def test_plain_rooms_load_without_torch() -> None:
    modules = torch_free_modules()
    assert {"indexshare.config", "indexshare.planner", "indexshare.cli"} <= set(modules)
    result = subprocess.run(
        [sys.executable, "-c", BLOCKER, *modules], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", [m for m in torch_free_modules() if not m.startswith("indexshare.cli")])
def test_plain_rooms_never_name_torch(module: str) -> None:
    path = SOURCES[MODULES.index(module)]
    if module == "indexshare":
        pytest.skip("the front door names every room, lazily")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = imported(tree, module, path.name == "__init__.py")
    assert [line for line, name in names if name.split(".")[0] == "torch"] == []
