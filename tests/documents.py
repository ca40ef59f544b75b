"""What the tests need to know about Markdown: blocks of code, headings, links."""

import re
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def documents() -> list[Path]:
    """Every Markdown file of the project that people read: README, changes, docs, the models' cards."""
    cards = [*ROOT.glob("indexshare/shipped/*/README.md"), *ROOT.glob("research/*/README.md")]
    return sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"), *cards])


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language ("" for those without one)."""
    return [body for name, body in _FENCE.findall(text) if name == language]


def anchors(text: str) -> set[str]:
    """Names that links into this text may use: one for each heading, as GitHub makes them."""
    found: dict[str, int] = {}
    names = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        names.add(slug if slug not in found else f"{slug}-{found[slug]}")
        found[slug] = found.get(slug, 0) + 1
    return names


def links(text: str) -> list[str]:
    """Targets of links and images, outside code."""
    return _LINK.findall(re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text)))


def broken_links(file: Path, text: str) -> list[str]:
    """Links of a file that lead to no file, or to no heading of one; those to other hosts are not followed."""
    bad = []
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (file.parent / path).resolve() if path else file
        if not target.exists() or ROOT not in [target, *target.parents]:
            bad.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(text if target == file else target.read_text(encoding="utf-8")):
            bad.append(f"{link}: no such heading")
    return bad
