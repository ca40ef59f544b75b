"""The documentation site builds without a warning, and every link in it leads somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT

_LINK = re.compile(r'(?:href|src)="?([^\s">]+)')
_NAME = re.compile(r'\bid="?([^\s">]+)')


def broken(site: Path) -> list[str]:
    """Links of the site's pages to files or places that are not there."""
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html") if path.name != "404.html"}
    names = {path.resolve(): set(_NAME.findall(text)) for path, text in pages.items()}
    bad = []
    for path, text in pages.items():
        for link in _LINK.findall(text):
            if re.match(r"[a-z]+:|//", link):
                continue
            file, _, place = link.partition("#")
            target = (path.parent / file.split("?")[0]).resolve() if file else path.resolve()
            if not target.exists() or (place and target in names and place not in names[target]):
                bad.append(f"{path.relative_to(site)}: {link}")
    return bad


@pytest.mark.slow
def test_the_site_builds_and_its_links_hold(tmp_path: Path) -> None:
    for module in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(module, reason="needs the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert broken(tmp_path / "site") == []
    text = (tmp_path / "site/reference/index.html").read_text(encoding="utf-8")
    assert "Most tokens to generate" in text or "most tokens to generate" in text
