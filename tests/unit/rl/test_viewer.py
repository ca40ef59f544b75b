"""The page: complete, without network, safe with any text; and the command that writes it."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from indexshare.cli import main
from indexshare.rl.files import write_trajectories
from indexshare.rl.trajectory import Trajectory
from indexshare.rl.viewer import write_page
from tests.unit.rl.trajectories import segment, trajectory


def page_data(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    return dict(json.loads(match[1]))


def test_the_page_holds_every_token_and_number(tmp_path: Path) -> None:
    lit = segment("suaaom").with_columns(advantage=np.array([9, 9, 0.5, -0.25, 9, 1.0]), ratio=np.full(6, np.nan))
    texts = {int(token): f"<{token}>" for token in lit.tokens[:2]}
    write_page(tmp_path / "p.html", [Trajectory(name="one", task="t", segments=(lit,), reward=0.5)], texts)
    page = (tmp_path / "p.html").read_text()
    (shown,) = page_data(page)["trajectories"]
    (part,) = shown["segments"]
    assert part["ids"] == lit.tokens.tolist() and part["mask"] == lit.mask.astype(int).tolist()
    assert part["texts"][0] == f"<{lit.tokens[0]}>"
    assert part["columns"]["advantage"] == [None, None, 0.5, -0.25, None, 1.0]  # only where it is trained on
    assert part["columns"]["ratio"] == [None] * 6
    assert "http" not in page.replace("http-equiv", "")


def test_no_text_gets_out_of_the_data(tmp_path: Path) -> None:
    made = replace(trajectory("ua"), name="</script><script>alert(1)</script><!--")
    write_page(tmp_path / "p.html", [made], {}, title="<b>")
    page = (tmp_path / "p.html").read_text()
    assert page.count("</script>") == 2 and "<!--" not in page
    assert page_data(page)["trajectories"][0]["name"] == made.name


def test_the_command_writes_the_page(tmp_path: Path, capsys: Any) -> None:
    run: Callable[..., int] = lambda *words: main([str(word) for word in words])  # noqa: E731
    file = write_trajectories(tmp_path / "a.safetensors", [trajectory("ua", name=f"n{i}") for i in range(3)])
    out = tmp_path / "p.html"
    assert run("rl", "view", file, "--out", out, "--most", 2) == 0
    assert [each["name"] for each in page_data(out.read_text())["trajectories"]] == ["n0", "n1"]
    assert run("rl", "view", file, "--out", out) == 0  # its own kind may be replaced
    (tmp_path / "other.html").write_text("notes")
    assert run("rl", "view", file, "--out", tmp_path / "other.html") == 2
    assert "another kind" in capsys.readouterr().err
    assert run("rl", "view", tmp_path / "none", "--out", out) == 2
    assert run("rl", "view", file, "--out", out, "--most", 0) == 2
