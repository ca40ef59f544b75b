"""What is measured is what it says: the gate catches wrong kernels, the twin is the model, engines are the users'."""

import inspect
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from indexshare import ops
from indexshare.config import preset
from indexshare.engine.llm import LLM
from indexshare.measure import gate, kernels
from indexshare.measure.memory import measure_memory
from indexshare.measure.runs import PREFILL_CHUNK, engine_for, random_prompt, request
from indexshare.measure.subject import Subject
from indexshare.measure.timing import Spread
from indexshare.model.selection import FULL_ATTENTION
from tests.unit.measure.test_results import CEILINGS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gate_passes_as_things_are(dtype: torch.dtype) -> None:
    checks = gate.check_operations(preset("tiny"), dtype)
    assert {check.what for check in checks} >= {"selected score mass", "sparse attention", "routing", "experts"}
    assert [check for check in checks if not check.passed] == []


@pytest.mark.parametrize(
    ("operation", "spoil", "caught"),
    [
        ("select_topk", lambda ids: (ids + 1).clamp_max(7), "selected score mass"),
        ("sparse_mla", lambda out: out * 1.1, "sparse attention"),
        ("sparse_mla", lambda out: out * torch.nan, "sparse attention"),
        ("experts", lambda out: out.roll(1, 0), "experts"),
    ],
)
def test_the_gate_catches_a_wrong_operation(
    operation: str, spoil: Callable[[torch.Tensor], torch.Tensor], caught: str
) -> None:
    right = getattr(ops, operation)
    wrong = ops.Backend(name="wrong", title="wrong kernels", status=lambda: ops.Status(True, "wrong"))
    right.register(ops.Implementation(wrong, lambda *args: spoil(right.__wrapped__(*args))))
    try:
        failed = [check.what for check in gate.check_operations(preset("tiny"), torch.float32) if not check.passed]
    finally:
        right.remove("wrong")
    assert caught in failed


def test_the_gate_runs_the_engine() -> None:
    model = Subject.find("tiny", "float32").load()
    assert gate.check_engine(engine_for(model, 64, 1)).passed
    model.lm_head.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        gate.check_engine(engine_for(model, 64, 1))


def test_random_weights_are_the_same_every_time() -> None:
    first, second = (Subject.find("tiny", "bfloat16").load() for _ in range(2))
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert first.lm_head.weight.dtype == torch.bfloat16
    assert first.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32  # type: ignore[union-attr]


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="--parts kernels"):
        Subject.find("glm-5.2").load()
    with pytest.raises(ValueError, match="float32 and bfloat16"):
        Subject.find("tiny", "float16")


def test_engines_run_as_users_get_them() -> None:
    assert inspect.signature(LLM).parameters["prefill_chunk"].default == PREFILL_CHUNK
    model = Subject.find("tiny", "float32").load()
    assert engine_for(model, 40, 2).engine.runner.full_attention_below == 0
    full = engine_for(model, 40, 2, full_attention=True)
    assert full.engine.runner.full_attention_below == FULL_ATTENTION
    seen: list[tuple[int, int]] = []
    run = request(full, random_prompt(model.config, 40), 3, on_prefill=lambda *done: seen.append(done))
    assert (len(run.decode_s), seen[-1]) == (3, (40, 40))
    assert min(run.prefill_s, *run.decode_s) > 0


def test_kernels_alone() -> None:
    found = kernels.kernels(preset("tiny"), torch.float32, 100, buffer_bytes=1 << 14)
    assert [(k.name, k.rows) for k in found] == [
        ("indexer, prefill", 92), ("sparse attention, prefill", 92), ("indexer, decode", 1),
        ("sparse attention, decode", 1),
    ]  # fmt: skip
    # Two heads of 16 over 9 + ... + 100 pairs; two heads over 92 x 8 rows of 24 values, of which 16 are summed.
    assert found[0].flops == 2 * 2 * 16 * sum(range(9, 101))
    assert found[1].flops == 2 * 2 * (24 + 16) * 92 * 8
    assert found[2].num_bytes == 100 * 16 * 4
    assert found[3].num_bytes == 8 * 24 * 4
    result = kernels.kernel_result(found[0], [2.0, 4.0], CEILINGS)
    assert result.seconds == Spread.of([2.0, 4.0])
    assert result.to_dict()["flops_per_s"] == found[0].flops / 3.0


def test_a_memory_process_that_fails_is_a_result(capfd: pytest.CaptureFixture[str]) -> None:
    subject = replace(Subject.find("tiny", "float32"), name="tinny")
    found = measure_memory(subject, 16, 1, 1)
    assert found.run is None and not found.as_planned
    assert found.failure == "the process ended with code 1; what it said is above"
    assert "did you mean 'tiny'?" in capfd.readouterr().err
