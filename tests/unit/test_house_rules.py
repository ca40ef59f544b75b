"""The house rules a machine can check: lengths, docstrings, one reader of the environment, clean text."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_LINES = 8  # of all functions of the package, docstrings included
MAX_NINTH_DECILE_LINES = 24
MAX_FILE_LINES = 400
MAX_FILE_LINES_LONG = 700  # tests and kernels
ENVIRONMENT_READER = "indexshare/config/environment.py"
CPP_SUFFIXES = (".cpp", ".h", ".hpp")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".cpp", ".h", ".hpp", ".sh", ".yml", ".yaml", ".cfg", ""}
# In pieces, so that this file passes its own test.
UNFINISHED = re.compile(r"\b(?:" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"]) + r")\b|NotImplemented" + "Error")
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|farm|root|home/\w+|Users/\w+|opt/(?:wheels|pypi))(?:/|\b)")


def project_files() -> list[Path]:
    """Files that git tracks or would track; without git, everything outside hidden and generated folders."""
    listing = ["git", "ls-files", "-co", "--exclude-standard"]
    try:
        names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        paths = [ROOT / name for name in names]
    except (OSError, subprocess.CalledProcessError):
        paths = [p for folder in ("indexshare", "tests", "docs", "recipes") for p in (ROOT / folder).rglob("*")]
    return sorted(p for p in paths if p.is_file() and "__pycache__" not in p.parts)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


FILES = project_files()
PYTHON = [p for p in FILES if p.suffix == ".py"]
LIBRARY = [p for p in PYTHON if relative(p).startswith("indexshare/")]
TEXT = [p for p in FILES if p.suffix in TEXT_SUFFIXES and p.stat().st_size < 2_000_000]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_long_kind(path: Path) -> bool:
    return relative(path).startswith("tests/") or path.suffix == ".cpp" or path.stem == "triton_impl"


def function_lines(path: Path) -> list[tuple[str, int]]:
    """Name and number of lines of every function of a file, nested ones and methods too."""
    functions = (n for n in ast.walk(parse(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return [(f.name, f.end_lineno - f.lineno + 1) for f in functions if f.end_lineno is not None]


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_functions_are_short(path: Path) -> None:
    limit = MAX_FILE_LINES_LONG if path.stem == "triton_impl" else MAX_FUNCTION_LINES
    assert [(name, lines) for name, lines in function_lines(path) if lines > limit] == []


def test_most_functions_are_shorter() -> None:
    lines = sorted(count for path in LIBRARY for _, count in function_lines(path))
    assert lines[len(lines) // 2] <= MAX_MEDIAN_LINES
    assert lines[9 * len(lines) // 10] <= MAX_NINTH_DECILE_LINES


# Comments and literals of C++, which may hold braces.
CPP_NO_CODE = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+'", re.DOTALL)
CPP_HEAD = re.compile(r"\)\s*(?:const|noexcept|override|mutable|->[^;{}]*|:[^;{}]*)?\s*$")


def cpp_function_lines(text: str) -> list[tuple[str, int]]:
    """Head and number of lines of every block that belongs to parentheses: functions, lambdas, loops, branches."""
    text = CPP_NO_CODE.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)
    open_blocks: list[tuple[str, int]] = []
    found, start = [], 0
    for mark in re.finditer(r"[;{}]", text):
        if mark.group() == "{":
            open_blocks.append((text[start : mark.start()].strip(), mark.start()))
        elif mark.group() == "}":
            head, at = open_blocks.pop()
            if CPP_HEAD.search(head):
                found.append((" ".join(head.split())[-60:], text.count("\n", at, mark.end()) + 1))
        start = mark.end()
    assert not open_blocks
    return found


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix in CPP_SUFFIXES], ids=relative)
def test_cpp_functions_are_short(path: Path) -> None:
    lengths = cpp_function_lines(path.read_text(encoding="utf-8"))
    assert [(head, lines) for head, lines in lengths if lines > MAX_FUNCTION_LINES] == []


def test_the_rule_for_cpp_itself() -> None:
    long, quoted = "    x();\n" * 61, "f(\"{{\", '{');  // {\n"
    for head in ("int f(int a)", "void A::f() const", "auto g = [&](int i) -> int", "A(int b) : b_(b)"):
        text = f"namespace a {{\n{quoted}{head} {{\n{long}}}\n}}  // namespace a\n"
        assert [lines for _, lines in cpp_function_lines(text)] == [63], head
    assert cpp_function_lines(f"struct A {{\n{long}}};\n") == []


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix in (".py", *CPP_SUFFIXES)], ids=relative)
def test_files_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= (MAX_FILE_LINES_LONG if is_long_kind(path) else MAX_FILE_LINES)


@pytest.mark.parametrize("path", TEXT, ids=relative)
def test_nothing_unfinished_and_no_machine_paths(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    bad = [f"{n}: {line.strip()[:90]}" for n, line in enumerate(lines, 1) if UNFINISHED.search(line)]
    bad += [f"{n}: {line.strip()[:90]}" for n, line in enumerate(lines, 1) if MACHINE_PATH.search(line)]
    assert bad == []


def documented_methods(tree: ast.Module) -> dict[str, set[str]]:
    """Methods with a docstring of every class of a file; an override of one of them need not repeat it."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return {
        c.name: {m.name for m in c.body if isinstance(m, ast.FunctionDef) and ast.get_docstring(m)} for c in classes
    }


def undocumented(
    body: list[ast.stmt],
    known: dict[str, set[str]],
    prefix: str = "",
    inherited: frozenset[str] = frozenset(),
) -> Iterator[str]:
    """Public functions, classes and methods without a docstring; `forward` is described by its class."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_") or node.name in inherited or (prefix and node.name == "forward"):
            continue
        overload = any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list)
        if not overload and ast.get_docstring(node) is None:
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            bases = [known.get(base.id, set()) for base in node.bases if isinstance(base, ast.Name)]
            yield from undocumented(node.body, known, f"{prefix}{node.name}.", frozenset().union(*bases))


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_public_names_have_docstrings(path: Path) -> None:
    tree = parse(path)
    empty = not tree.body
    assert empty or ast.get_docstring(tree), "the module says nothing about itself"
    assert list(undocumented(tree.body, documented_methods(tree))) == []


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_one_function_reads_the_environment(path: Path) -> None:
    readers = {"environ", "getenv", "environb"}
    lines = [n.lineno for n in ast.walk(parse(path)) if isinstance(n, ast.Attribute) and n.attr in readers]
    lines += [
        n.lineno
        for n in ast.walk(parse(path))
        if isinstance(n, ast.ImportFrom) and n.module == "os" and readers & {a.name for a in n.names}
    ]
    assert not lines or relative(path) == ENVIRONMENT_READER, f"lines {lines}: read it in {ENVIRONMENT_READER}"


def test_every_environment_variable_is_documented() -> None:
    source = (ROOT / ENVIRONMENT_READER).read_text(encoding="utf-8")
    names = set(re.findall(r"\bINDEXSHARE_[A-Z_]+\b", source))
    documented = (ROOT / "docs/environment.md").read_text(encoding="utf-8")
    assert names
    assert {name for name in names if f"`{name}`" not in documented} == set()


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("see /ho" + "me/someone/x", True),
        ("cd /ro" + "ot/x", True),
        ("https://example.org/home/x", False),
        ("a/work/b", False),
        ("the roots of x", False),
    ],
)
def test_the_path_rule_itself(text: str, caught: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) == caught
