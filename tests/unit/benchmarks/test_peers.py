"""The comparison's arithmetic and order, with processes that are made up: gate, turns, resuming, table."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("peers")


def result(prefill: float, decode: float, peak: float = 1e9) -> dict[str, Any]:
    return {"prefill_s": prefill, "decode_s": [decode, 3 * decode, decode], "loaded_bytes": 1, "peak_bytes": peak}


@pytest.fixture
def comparison(peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A start of the program in which every process takes as long as `seconds` says; `ran` lists them in order."""
    monkeypatch.setattr(peers, "absent_programs", lambda wanted: {})
    monkeypatch.setattr(peers, "say", lambda text: None)

    def start(*arguments: str, seconds: Callable[[dict[str, Any]], float]) -> Any:
        options = ["--work", str(tmp_path), "--threads", "2", "--llama-threads", "2", *arguments]
        made = peers.Comparison(peers.parse(options))
        made.ran = []

        def child(job: str, program: str, **settings: Any) -> dict[str, Any]:
            assert job == "run"
            made.ran.append((program, settings["flash"], settings["length"]))
            taken = seconds({"program": program, **settings})
            if taken < 0:
                raise peers.ChildFailed("ended by the system (signal 9), most likely for want of memory")
            return result(taken, taken / 1000)

        made.child = child
        return made

    return start


def test_contenders_take_turns_at_each_length(comparison: Callable[..., Any]) -> None:
    start = comparison("--lengths", "64", "0", "--repeats", "2", seconds=lambda job: 1.0)
    records = list(start.measure())
    turn = [("indexshare", None), ("transformers", None), ("llama.cpp", True), ("llama.cpp", False)]
    assert [entry[:2] for entry in start.ran] == turn * 4
    assert [entry[2] for entry in start.ran] == [0] * 8 + [64] * 8
    assert [record["identity"]["turn"] for record in records[:8]] == [0] * 4 + [1] * 4


def test_slow_and_large_ones_are_run_less(comparison: Callable[..., Any]) -> None:
    start = comparison(
        "--lengths", "64", "128", "--repeats", "3", "--budget", "5", "--transformers-up-to", "64",
        seconds=lambda job: 10.0 if job["program"] == "llama.cpp" else 1.0,
    )  # fmt: skip
    list(start.measure())
    assert start.ran.count(("llama.cpp", True, 64)) == 1
    assert start.ran.count(("indexshare", None, 64)) == 3
    assert start.ran.count(("transformers", None, 64)) == 3
    assert start.ran.count(("transformers", None, 128)) == 0


def test_started_again_it_goes_on(comparison: Callable[..., Any], tmp_path: Path) -> None:
    arguments = ("--lengths", "64", "--repeats", "2")
    first = comparison(*arguments, seconds=lambda job: 1.0)
    measuring = first.measure()
    half = [next(measuring) for _ in range(5)]
    with (tmp_path / "measurements.jsonl").open("a") as file:
        file.write('{"identity": {"program": "tran')  # the power goes
    second = comparison(*arguments, seconds=lambda job: 2.0)
    records = list(second.measure())
    assert records[:5] == half
    assert len(second.ran) == 3
    third = comparison(*arguments, seconds=lambda job: 3.0)
    assert list(third.measure()) == records
    assert third.ran == []
    other = comparison(*arguments, "--decode-tokens", "4", seconds=lambda job: 3.0)
    list(other.measure())
    assert len(other.ran) == 8  # another measurement altogether


def test_other_sources_are_measured_again(comparison: Callable[..., Any]) -> None:
    arguments = ("--lengths", "64", "--repeats", "1")
    list(comparison(*arguments, seconds=lambda job: 1.0).measure())
    changed = comparison(*arguments, seconds=lambda job: 1.0)
    changed._sources = "0123"
    list(changed.measure())
    assert changed.ran == [("indexshare", None, 64)]


def test_a_process_without_memory_is_reported_and_not_tried_again(
    peers: ModuleType, comparison: Callable[..., Any]
) -> None:
    seconds = lambda job: -1.0 if job["program"] == "transformers" else 1.0  # noqa: E731
    start = comparison("--lengths", "64", "--repeats", "3", seconds=seconds)
    records = list(start.measure())
    assert start.ran.count(("transformers", None, 64)) == 1
    again = comparison("--lengths", "64", "--repeats", "3", seconds=seconds)
    list(again.measure())
    assert again.ran == []
    table = peers.table(report_of(peers, records))
    assert "transformers, 2 threads at 64 tokens: ended by the system (signal 9)" in table


def report_of(peers: ModuleType, records: list[dict[str, Any]]) -> dict[str, Any]:
    about = {"command": "python benchmarks/peers.py", "absent": {}, "gate": {}, "settings": {"transformers_up_to": 64}}
    machine = {"processor": "P", "cores": 2, "versions": {"torch": "2", "transformers": None}}
    return peers.build_report(records, about | {"machine": machine})


@pytest.fixture
def report(peers: ModuleType, comparison: Callable[..., Any]) -> dict[str, Any]:
    """64 and 128 tokens: llama.cpp reads faster without flash attention (4 s a 64) and writes faster with it."""

    def seconds(job: dict[str, Any]) -> float:
        factor = {"indexshare": 1.0, "transformers": 8.0, "llama.cpp": 4.0}[job["program"]]
        return max(job["length"], 1) / 64 * factor * (1.5 if job["flash"] else 1.0)

    start = comparison("--lengths", "0", "64", "128", "--repeats", "3", "--transformers-up-to", "64", seconds=seconds)
    records = list(start.measure())
    for record in records:
        if record["identity"]["flash"]:
            record["result"]["decode_s"] = [1e-4]
        if record["identity"]["turn"] == 2:
            record["result"]["prefill_s"] *= 2
    return report_of(peers, records)


def test_the_best_of_each_figure_is_compared(report: dict[str, Any]) -> None:
    at_64 = report["results"][1]
    assert at_64["length"] == 64
    best = at_64["best"]["prefill_s"]
    assert best["indexshare"]["median"] == 1.0
    assert (best["indexshare"]["low"], best["indexshare"]["high"], best["indexshare"]["runs"]) == (1.0, 2.0, 3)
    assert best["transformers"]["times_indexshare"] == 8.0
    assert best["llama.cpp"]["times_indexshare"] == 4.0
    assert "no flash attention" in best["llama.cpp"]["label"]
    decode = at_64["best"]["decode_ms"]
    assert decode["indexshare"]["median"] == pytest.approx(1.0)  # the median of a run's tokens
    assert decode["llama.cpp"]["median"] == pytest.approx(0.1)
    assert "no flash" not in decode["llama.cpp"]["label"]
    assert report["results"][0]["best"]["prefill_s"] == {}
    assert "transformers" not in report["results"][2]["best"]["prefill_s"]
    json.dumps(report, allow_nan=False)


def test_the_table(peers: ModuleType, report: dict[str, Any]) -> None:
    lines = peers.table(report).splitlines()
    assert lines[0].startswith("| tokens | figure | indexshare | transformers | llama.cpp | transformers / indexshare")
    columns = {line.count("|") for line in lines if line.startswith("|")}
    assert columns == {8}
    assert "| 64 | prefill, s | 1 (1 to 2) | 8 (8 to 16) | 4 (4 to 8), no FA | 8.00 | 4.00 |" in lines
    assert any(line.startswith("| 128 | prefill, s | 2 (2 to 4) | - |") for line in lines)
    assert not any(line.startswith("| 0 | prefill") for line in lines)
    text = "\n".join(lines)
    assert "transformers was run up to 64 tokens" in text
    assert "`python benchmarks/peers.py`" in text


def test_the_plot(peers: ModuleType, report: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    peers.draw(report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def logits(rows: int = 100) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, 32)).astype(np.float32)


def test_the_gate(peers: ModuleType) -> None:
    ours = logits()
    noise = logits() * 0.05
    near_ties = ours + 1e-6
    near_ties[:2] += 0.5
    right = {"indexshare": ours, "indexshare bfloat16": ours + noise, "transformers": near_ties,
             "llama.cpp, flash attention": ours - 1.5 * noise}  # fmt: skip
    found = peers.compare(right)
    assert found["passed"]
    assert found["relative_errors"]["indexshare bfloat16"] == pytest.approx(0.05, rel=0.05)
    assert len(found["checks"]) == 3
    eight = {**right, "indexshare int8": ours - 2 * noise, "llama.cpp, Q8_0": ours + 3 * noise}
    assert peers.compare(eight)["passed"] and not peers.compare(eight | {"llama.cpp, Q8_0": ours + 5 * noise})["passed"]
    wrong = {
        "transformers": [ours + 1e-3, np.concatenate((near_ties[2:], near_ties[:2] + 1, ours[:2] + 1)), ours * np.nan],
        "llama.cpp, flash attention": [ours + 3 * noise, logits(101)[1:], ours * np.nan],
        "indexshare bfloat16": [ours + 12 * noise, ours * np.nan],
    }
    for name, spoiled in wrong.items():
        for theirs in spoiled:
            assert not peers.compare(right | {name: theirs[:100]})["passed"], name


def test_arguments(peers: ModuleType) -> None:
    assert peers.parse(["--lengths", "64", "0", "64"]).lengths == [0, 64]
    for wrong in (["--lengths", "-1"], ["--repeats", "0"], ["--programs", "vllm"]):
        with pytest.raises(SystemExit):
            peers.parse(wrong)
    arguments = peers.parse(["--threads", "4", "--llama-threads", "2", "4", "--llama-batches", "512", "1024"])
    labels = [variant.label for variant in peers.variants(arguments, ["indexshare", "llama.cpp"])]
    assert labels[0] == "indexshare, 4 threads"
    assert len(labels) == 1 + 2 * 2 * 2
    assert "llama.cpp, no flash attention, batch 1024, 4 threads" in labels
    for weights, theirs in (("int8", "Q8_0"), ("int4", "Q4_0")):
        arguments = peers.parse(["--weights", weights, "--threads", "2", "--llama-threads", "2"])
        labels = [variant.label for variant in peers.variants(arguments, ["indexshare", "llama.cpp"])]
        assert labels[0] == f"indexshare, {weights}, 2 threads"
        assert all(label.startswith(f"llama.cpp, {theirs}, ") for label in labels[1:])


def test_a_program_that_cannot_run_is_one_line(
    peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> dict[str, Any]:
        raise peers.ChildFailed("ended with code 1")

    monkeypatch.setattr(peers, "run_child", fail)
    monkeypatch.setattr(peers, "absent_programs", lambda wanted: {"llama.cpp": "pip install it"})
    assert peers.main(["--work", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "llama.cpp is absent and left out; to have it: pip install it" in said
    assert "the last process ended with code 1" in said
