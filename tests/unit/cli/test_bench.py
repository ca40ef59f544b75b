"""`indexshare bench`: a whole run on the tiny preset, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indexshare.measure import ceilings, kernels, report
from indexshare.measure.gate import Check

SMALL = ("--lengths", 24, 48, "--repeats", 1, "--decode-tokens", 2, "--threads", 1, "--kernel-context", 64)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings of small buffers: nobody reads these figures."""
    jobs = ceilings.ceiling_jobs
    monkeypatch.setattr(report, "ceiling_jobs", lambda dtype: jobs(dtype, size=64, buffer_bytes=1 << 16))
    alone = kernels.kernels
    monkeypatch.setattr(report, "kernels", lambda *args: alone(*args, buffer_bytes=1 << 12))


def test_one_json_object_has_everything(run: Callable[..., Any]) -> None:
    result = run("bench", "tiny", *SMALL, "--json")
    facts = json.loads(result.out)
    assert result.code == 0
    assert facts["gate"]["passed"]
    assert facts["settings"]["lengths"] == [24, 48]
    assert {(row["variant"], row["length"]) for row in facts["speed"]} == {
        (variant, length) for variant in ("model", "all-full", "full-attention") for length in (0, 24, 48)
    }
    assert [row["name"] for row in facts["kernels"]] == [
        "indexer, prefill", "sparse attention, prefill", "indexer, decode", "sparse attention, decode",
    ]  # fmt: skip
    assert len(facts["ratios"]) == 6
    assert [row["length"] for row in facts["memory"]] == [24, 48]
    for row in facts["memory"]:
        assert row["failure"] is None
        assert row["peak_bytes"] > row["program_bytes"] > 0
        assert row["prefill_s"] > 0
    assert facts["versions"]["torch"] and facts["machine"]["processor"]


def test_people_get_tables_and_progress_goes_elsewhere(run: Callable[..., Any], model_dir: Path) -> None:
    result = run("bench", model_dir, *SMALL, "--parts", "kernels", "speed", "--variants", "model", "all-full")
    assert result.code == 0
    for text in ("trained weights, float32", "What this machine can do", "indexer, decode", "Prefill: median and range",
                 "Decode: median and range", "every layer Full", "Times as long as the model as it is"):  # fmt: skip
        assert text in result.out
    assert "full attention" not in result.out
    assert "model, 48 tokens, run 1" in result.err
    assert "a prompt token takes" in result.err


@pytest.mark.slow
def test_the_cache_may_be_kept_in_few_bits(run: Callable[..., Any]) -> None:
    options = ("--parts", "speed", "memory", "--variants", "model", "--json")
    found = [
        json.loads(run("bench", "tiny", *SMALL, *options, *kept).out)
        for kept in ((), ("--cache-dtype", "int8"), ("--cache-dtype", "int8", "--index-cache-dtype", "bfloat16"))
    ]
    assert [facts["model"]["cache_dtype"] for facts in found] == [None, "int8", "int8"]
    assert found[2]["model"]["index_cache_dtype"] == "bfloat16"
    plain, small, mixed = (facts["memory"][1]["planned_cache_bytes"] for facts in found)
    assert small < mixed < plain
    plain, small, mixed = (facts["speed"][2]["decode_bytes"]["scores"] for facts in found)
    assert small < mixed and small < plain
    assert all(row["failure"] is None for facts in found for row in facts["memory"])


def test_a_wrong_kernel_is_not_timed(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Check(what="experts", value=0.5, bound=0.01)
    monkeypatch.setattr(report, "check_operations", lambda *_: [wrong])
    result = run("bench", "tiny", *SMALL, "--parts", "kernels", "--json")
    facts = json.loads(result.out)
    assert result.code == 1
    assert "experts is wrong, off by 5.00e-01 where 1e-02 is allowed" in result.err
    assert not facts["gate"]["passed"]
    assert (facts["ceilings"], facts["kernels"], facts["speed"], facts["memory"]) == (None, [], [], [])
    assert "experts WRONG" in run("bench", "tiny", *SMALL, "--parts", "kernels").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tinny",), "did you mean 'tiny'?"),
        (("tiny", "--dtype", "float16"), "float32 and bfloat16"),
        (("tiny", "--cache-dtype", "int4"), "--cache-dtype is 'int4'; did you mean 'int8'?"),
        (("tiny", "--lengths", 5000), "tiny was made for 4096"),
        (("tiny", "--parts", "sped"), "sped"),
        (("glm-5.2", "--parts", "speed", "--lengths", 64), "--parts kernels"),
    ],
)
def test_mistakes_are_one_line(run: Callable[..., Any], arguments: tuple[object, ...], message: str) -> None:
    result = run("bench", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err.splitlines()[-1]
    assert result.err.splitlines()[-1].startswith("error: ")
