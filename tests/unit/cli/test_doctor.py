"""`indexshare doctor`: complete on this machine, honest about what is missing, and the parsing behind it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indexshare.cli import doctor


def test_the_report_is_complete(run: Callable[..., Any]) -> None:
    result = run("doctor", "--json")
    report = json.loads(result.out)
    assert (result.code, report["ready"], result.err) == (0, True, "")
    assert set(report["packages"]) == {*doctor.REQUIRED, *doctor.OPTIONAL}
    assert report["torch"]["threads"] >= 1
    assert 0 < report["memory_available"] <= report["memory_total"]
    assert {row["op"] for row in report["operations"]} >= {"select_topk", "sparse_mla", "experts"}
    assert all("error" not in facts for facts in report["models"].values())


def test_people_get_every_section(run: Callable[..., Any]) -> None:
    text = run("doctor").out
    for part in ("Machine", "Packages", "Operations", "Shipped models", "Ready.", "tokenizers"):
        assert part in text


@pytest.mark.parametrize(
    ("implementation", "said"),
    [("cpu", "none; the C++ kernels in use were compiled before"), ("torch", "none: the torch implementations run")],
)
def test_without_a_compiler_it_says_what_runs(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, implementation: str, said: str
) -> None:
    row = {"op": "experts", "implementation": implementation, "reason": "so"}
    monkeypatch.setattr(doctor, "_operations", lambda: [row])
    monkeypatch.setattr("indexshare.planner.machine.compiler", lambda: None)
    assert f"C++ compiler  {said}\n" in run("doctor").out


def test_a_missing_package_is_named_with_its_use(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "jinja2" else found(name))
    result = run("doctor")
    assert result.code == 1
    assert "MISSING: chat templates" in result.out
    assert "Not ready: install jinja2" in result.out


def test_without_torch_the_rest_is_still_reported(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "torch" else found(name))
    report = json.loads(run("doctor", "--json").out)
    assert report["torch"] == {"error": "not installed"}
    assert report["missing"] == ["torch"]
    assert (report["ready"], report["models"], report["operations"]) == (False, {}, [])


def test_a_model_that_does_not_load_is_reported(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    monkeypatch.setattr(doctor, "shipped_models", lambda: {"broken": broken})
    result = run("doctor")
    assert result.code == 1
    assert "does not load" in result.out
    assert "Not ready: model broken does not load" in result.out
