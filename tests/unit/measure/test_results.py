"""Shares, bounds, ratios, growth and plans: arithmetic on times that are made up."""

import json
from dataclasses import replace

import pytest
import torch

from indexshare.config import preset
from indexshare.engine.scheduler import PREFILL_CHUNK
from indexshare.measure.ceilings import Ceilings, bound_of, ceiling_jobs, ceilings_of
from indexshare.measure.memory import MemoryResult, MemoryRun
from indexshare.measure.report import BenchReport, BenchSettings, growth, ratios
from indexshare.measure.runs import Run, SpeedResult, prefill_bytes, speed_result
from indexshare.measure.subject import Subject
from indexshare.measure.timing import Spread
from indexshare.planner.flops import prefill_flops, step_bytes, token_flops
from indexshare.planner.memory import MemoryPlan, plan_memory, step_workspace_bytes

TINY = preset("tiny")
CEILINGS = Ceilings(matrix=Spread.of([1e9]), copy=Spread.of([5e8]), read=Spread.of([1e8]))


def settings(**changes: object) -> BenchSettings:
    values = {"lengths": (64,), "decode_tokens": 2, "repeats": 1, "budget_s": 1.0, "parts": ("speed",),
              "variants": ("model",), "kernel_context": 64, "threads": 1}  # fmt: skip
    return BenchSettings(**(values | changes))  # type: ignore[arg-type]


def result(variant: str, length: int, prefill: float, decode: float) -> SpeedResult:
    run = Run(prefill_s=prefill, decode_s=(decode,))
    return speed_result(variant, TINY, 2, length, [run], CEILINGS)


@pytest.mark.parametrize(
    ("flops", "num_bytes", "by", "shares"),
    [
        (5e8, 1e7, "arithmetic", (0.5, 0.1)),
        (5e8, 8e7, "memory", (0.5, 0.8)),
        (1e8, 2e7, "neither", (0.1, 0.2)),
    ],
)
def test_what_bounds_a_second_of_work(flops: float, num_bytes: float, by: str, shares: tuple[float, float]) -> None:
    bound = bound_of(flops, num_bytes, 1.0, CEILINGS)
    assert (bound.by, bound.matrix_share, bound.read_share) == (by, *map(pytest.approx, shares))
    slower = bound_of(flops, num_bytes, 2.0, CEILINGS)
    assert (slower.flops_per_s, slower.bytes_per_s) == (flops / 2, num_bytes / 2)


def test_speed_uses_the_planners_counts_and_the_medians() -> None:
    runs = [Run(prefill_s=s, decode_s=(d, 3 * d)) for s, d in ((4.0, 0.1), (1.0, 0.2), (2.0, 0.3))]
    got = speed_result("model", TINY, 2, 64, runs, CEILINGS)
    assert got.prefill_s == Spread.of([4.0, 1.0, 2.0])
    assert got.decode_s == Spread.of(second for run in runs for second in run.decode_s)
    assert got.decode_s.runs == 6
    assert got.prefill is not None
    assert got.prefill.flops_per_s == prefill_flops(TINY, 64).total / 2.0
    assert got.decode.flops_per_s == token_flops(TINY, 65).total / got.decode_s.median
    assert got.decode.bytes_per_s == step_bytes(TINY, 65).total / got.decode_s.median
    full = speed_result("full-attention", TINY, 2, 64, runs, CEILINGS)
    expanded = token_flops(TINY, 65, full_attention=True, absorbed=False).total
    assert full.decode.flops_per_s == expanded / got.decode_s.median
    alone = speed_result("model", TINY, 2, 0, runs, CEILINGS)
    assert (alone.prefill_s, alone.prefill) == (None, None)
    assert alone.decode.flops_per_s == token_flops(TINY, 1).total / got.decode_s.median


def test_a_prefill_reads_the_weights_with_every_chunk() -> None:
    assert prefill_bytes(TINY, 2, 300) == step_bytes(TINY, 300, rows=300).total
    chunk = PREFILL_CHUNK
    steps = ((chunk, chunk), (2 * chunk, chunk), (2 * chunk + 6, 6))
    parts = [step_bytes(TINY, stop, rows=rows).total for stop, rows in steps]
    assert prefill_bytes(TINY, 2, 2 * chunk + 6) == sum(parts)


def test_ratios_and_growth() -> None:
    speed = [result("model", 0, 0.0, 0.01), result("all-full", 0, 0.0, 0.015), result("model", 100, 1.0, 0.02),
             result("all-full", 100, 1.8, 0.03), result("model", 200, 4.4, 0.02)]  # fmt: skip
    assert ratios(speed) == [
        {"length": 0, "against": "all-full", "prefill": None, "decode": pytest.approx(1.5)},
        {"length": 100, "against": "all-full", "prefill": pytest.approx(1.8), "decode": pytest.approx(1.5)},
    ]
    assert growth(speed) == [{"variant": "model", "from": 100, "to": 200, "time_per_token": pytest.approx(2.2)}]
    assert ratios(speed[1:2]) == []


def memory(peak: int) -> MemoryResult:
    plan = MemoryPlan(weights=600, cache=300, workspace=100)
    run = MemoryRun(program_bytes=1000, loaded_bytes=1600, peak_bytes=peak, prefill_s=1.0, decode_s=0.1)
    return MemoryResult(length=64, plan=plan, run=run)


@pytest.mark.parametrize(("peak", "within"), [(2000, True), (2190, True), (1810, True), (2210, False), (1790, False)])
def test_a_peak_is_compared_with_program_and_plan(peak: int, within: bool) -> None:
    found = memory(peak)
    assert (found.planned_peak, found.as_planned) == (2000, within)
    assert found.to_dict()["measured_over_planned"] == pytest.approx(peak / 2000)


def test_a_process_without_a_result_is_a_failure() -> None:
    found = replace(memory(2000), run=None, failure="no memory")
    assert (found.of_plan, found.as_planned) == (None, False)
    assert found.to_dict()["failure"] == "no memory"


def test_the_plan_has_every_part() -> None:
    plan, longer = plan_memory(TINY, 1000, element_bytes=4), plan_memory(TINY, 2000, element_bytes=4)
    per_token = (6 * TINY.latent_dim + 3 * TINY.index_head_dim) * 4
    assert plan.cache == 1000 * per_token
    assert longer.weights == plan.weights
    assert longer.workspace - plan.workspace == 1000 * 48
    assert plan.compiled == 0  # float32 products are not compiled for each size
    half, ragged = plan_memory(TINY, 1024), plan_memory(TINY, 1000)
    assert ragged.compiled == 3 * half.compiled // 2 > 0
    assert half.total == half.weights + half.cache + half.workspace + half.compiled
    assert step_workspace_bytes(TINY, 512, 4) < plan.workspace
    assert step_workspace_bytes(TINY, 64) < step_workspace_bytes(TINY, 512)


def test_ceilings_are_rates() -> None:
    jobs = ceiling_jobs(torch.float32, size=32, buffer_bytes=1 << 16)
    found = ceilings_of({name: [job(), job()] for name, job in jobs.items()})
    assert found.matrix.runs == 2
    assert min(found.matrix.low, found.copy.low, found.read.low) > 0
    assert set(found.to_dict()) == {"matrix_flops_per_s", "copy_bytes_per_s", "read_bytes_per_s"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": ()}, "--lengths is empty"),
        ({"lengths": (0, 64)}, "--lengths is 0 64; expected at least 1"),
        ({"repeats": 0}, "--repeats is 0"),
        ({"lengths": (4096,)}, "need 4099 positions; tiny was made for 4096"),
        ({"parts": ("kernels",), "kernel_context": 8}, "tiny selects 8 keys"),
    ],
)
def test_settings_that_cannot_be_met(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changes).check(Subject.find("tiny"))


def test_long_contexts_are_fine_for_kernels_alone() -> None:
    settings(lengths=(10**6,), parts=("kernels",)).check(Subject.find("tiny"))


def test_a_report_is_one_json_object() -> None:
    report = BenchReport(subject=Subject.find("tiny"), settings=settings(), command="indexshare bench")
    report.ceilings, report.speed, report.memory = CEILINGS, [result("model", 100, 1.0, 0.02)], [memory(2000)]
    facts = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert facts["model"]["weights"] == "random"
    assert facts["speed"][0]["prefill"]["by"] in ("arithmetic", "memory", "neither")
    assert facts["gate"] == {"passed": True, "checks": []}
    assert facts["settings"]["prefill_chunk"] == PREFILL_CHUNK
