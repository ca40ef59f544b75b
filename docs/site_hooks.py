"""What `make docs` adds to the pages of this folder: README, cards, changes, notebooks, options, API reference.

All of it is made while the site is built, from the files that are read in the repository. Links between those files
lead to the pages made from them.
"""

from __future__ import annotations

import ast
import json
import posixpath
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "indexshare/shipped/nano/README.md": "models/nano.md",
    "indexshare/shipped/pico/README.md": "models/pico.md",
    "research/nano-dsa/README.md": "models/nano-dsa.md",
}
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the two sections of the navigation that are found, not typed."""
    for section in config["nav"]:
        if "Reference" in section:
            section["Reference"] = [
                {room or "indexshare": f"reference/{room or 'index'}.md"} for room in ["", *rooms()]
            ]
        if "Notebooks" in section:
            section["Notebooks"] = [f"notebooks/{file.stem}.md" for file in notebooks()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    made = {page: _without_header((ROOT / source).read_text(encoding="utf-8")) for source, page in PAGES.items()}
    made |= {f"reference/{room or 'index'}.md": reference(room) for room in ["", *rooms()]}
    made["options.md"] = options()
    for file in notebooks():
        text, pictures = notebook_page(file)
        made[f"notebooks/{file.stem}.md"] = text
        for name, data in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=data))
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links to files of the repository become links to the pages made from them."""
    origin = {page: source for source, page in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return _LINK.sub(lambda link: link[1] + _target(link[2], origin, page.file.src_uri), markdown)


def _target(link: str, origin: str, page: str) -> str:
    """A link as it stands in the file `origin`, for the page `page`."""
    if re.match(r"[a-z]+:", link) or origin.startswith(("docs/reference", "docs/options")):
        return link
    file = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))
    known = PAGES.get(file, file.removeprefix("docs/") if file.startswith("docs/") else None)
    if known is None:
        return link  # the strict build refuses it
    known = known.removesuffix(".ipynb") + ".md" if known.endswith(".ipynb") else known
    return posixpath.relpath(known, posixpath.dirname(page) or ".")


def _without_header(text: str) -> str:
    """A card without the metadata at its top."""
    return text.split("---\n", 2)[2] if text.startswith("---\n") else text


def rooms() -> list[str]:
    """Rooms of the package, by name."""
    folders = (ROOT / "indexshare").iterdir()
    return sorted(folder.name for folder in folders if (folder / "__init__.py").is_file())


def reference(room: str) -> str:
    """The page of a room: every module with its docstrings; that of the package has the public names."""
    if not room:
        return "# indexshare\n\nThe public names.\n\n" + "".join(f"::: {path}\n\n" for path in public_names())
    modules = sorted((ROOT / "indexshare" / room).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules if path.stem != "__init__"]
    return f"# {room}\n\n" + "".join(f"::: {name}\n    options:\n      show_root_full_path: true\n\n" for name in names)


def public_names() -> list[str]:
    """Full names of what `import indexshare` offers."""
    tree = ast.parse((ROOT / "indexshare/__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOME_OF":
            return [f"{home}.{name}" for name, home in sorted(ast.literal_eval(node.value).items())]
    raise ValueError("indexshare/__init__.py has no table _HOME_OF")


def options() -> str:
    """Every verb with its options, from the docstrings that `--help` shows."""
    from indexshare.cli import build_app

    return "# Every option\n\n" + build_app().generate_docs(output_format="markdown", heading_level=2)


def notebooks() -> list[Path]:
    """The notebooks, in order."""
    return sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def notebook_page(file: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as a page, and its pictures by name."""
    parts, pictures = [], dict[str, bytes]()
    for number, cell in enumerate(json.loads(file.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for data in _outputs(cell):
            if "image/png" in data:
                name = f"{file.stem}-{number}.png"
                pictures[name] = b64decode(data["image/png"])
                parts.append(f"![output]({name})")
            elif text := "".join(data.get("text/plain", "")).rstrip():
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts) + "\n", pictures


def _outputs(cell: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for output in cell.get("outputs", []):
        yield {"text/plain": output["text"]} if output["output_type"] == "stream" else output.get("data", {})
