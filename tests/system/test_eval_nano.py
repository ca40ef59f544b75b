"""Every evaluation suite on the shipped model, in seconds; what the figures must be is for the model's own tests."""

import json
import math
from pathlib import Path

import pytest

from indexshare.cli import main

UNSEEN = Path(__file__).with_name("unseen_example.txt")


def test_the_suites_run_on_nano(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = tmp_path / "shop"
    package.mkdir()
    lines = UNSEEN.read_text(encoding="utf-8").splitlines(keepends=True)
    for name, part in (("stock", lines[: len(lines) // 2]), ("orders", lines[len(lines) // 2 :])):
        (package / f"{name}.py").write_text("".join(part), encoding="utf-8")
    small = ["--lengths", "600", "--samples", "1", "--context", "1000", "--max-tokens", "600", "--tokens", "600"]
    suites = "held-out,needle,recall,repository,draft"  # the long questions need longer texts
    assert main(["eval", "nano", "--suite", suites, "--text", str(tmp_path), "--json", *small]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert 0.1 < facts["sparse"] < facts["xz"]
    assert math.isfinite(facts["prices"]["rows"][0]["price_of_sparsity"]["value"])
    assert facts["repository"]["files"] == 2 and 0 <= facts["needle"]["accuracy"]["full"][0]["value"] <= 1
    first, second = (step["value"] for step in facts["draft"]["agreement"])
    assert 0.2 < second <= first <= 1, (
        "a trained draft layer agrees far more often than chance, less at its second step"
    )
