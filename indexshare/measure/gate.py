"""The check before anything is timed: each operation against its float32 reference, the engine against both.

The bounds are what the kernels promise (the same selection in float32, 99.9 % of the selected score mass in bfloat16)
and, for the rest, what the rounding of the type explains. They are wide enough for any machine and any model, and
narrow enough that a wrong kernel does not pass; `tests/` holds the kernels to much less.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from indexshare import ops
from indexshare.config import ModelConfig
from indexshare.config.grouped import settings_of
from indexshare.config.variant import GroupedAttention
from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from indexshare.measure.operands import AttentionOperands, IndexOperands
from indexshare.ops.indexer.reference import index_scores

ROWS = 24  # queries of a sample
EXPERTS = 4  # of a sample; all of a large model's would not fit
LOST_MASS = 1e-3  # of the selected scores
ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # root mean square over that of the reference
NATS = {torch.float32: 1e-3, torch.bfloat16: 0.25}  # median difference of log-probabilities over a whole model
DECODED = 8


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison: `value` may be at most `bound`; NaN fails."""

    what: str
    value: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether it holds."""
        return self.value <= self.bound

    def to_dict(self) -> dict[str, object]:
        """Plain values."""
        return {"what": self.what, "value": self.value, "bound": self.bound, "passed": self.passed}


def check_operations(config: ModelConfig, dtype: torch.dtype) -> list[Check]:
    """Every operation that has a fast form, on random samples in the model's shapes (few experts)."""
    experts = _check_experts(config, dtype) if config.has_experts else []
    if not config.selects:
        return [*_check_grouped(config, dtype), *experts]
    keys = 4 * config.index_topk + ROWS + 5  # more than the selection, and no round number
    index = IndexOperands.random(config, dtype, ROWS, keys)
    chosen = ops.select_topk(*index)
    if isinstance(config.variant.attention, GroupedAttention):
        return [*_check_selection(index, chosen, dtype), *_check_grouped(config, dtype, chosen, keys), *experts]
    attention = AttentionOperands.random(config, dtype, chosen, keys)
    return [
        *_check_selection(index, chosen, dtype),
        Check(what="sparse attention", value=_error("sparse_mla", *attention), bound=ERROR[dtype]),
        *experts,
    ]


def gate_context(config: ModelConfig) -> int:
    """Tokens that `check_engine` needs room for: some more than are attended to in full, where fewer than all are."""
    return min((config.index_topk if config.selects else ROWS) + 64, config.max_position_embeddings - 1)


def _check_grouped(
    config: ModelConfig, dtype: torch.dtype, chosen: Tensor | None = None, keys: int = 6 * ROWS + 3
) -> list[Check]:
    """Attention of a few tokens to everything before them, and to the keys that were chosen, if any were."""
    own, generator = settings_of(config), torch.Generator().manual_seed(4)
    shapes = ((ROWS, config.num_attention_heads), *[(keys, own.kv_heads)] * 2)
    q, k, v = (torch.randn(*shape, own.head_dim, generator=generator).to(dtype) for shape in shapes)
    scale = own.head_dim**-0.5
    first = keys - ROWS
    checks = [Check(what="attention", value=_error("dense_attention", q, k, v, first, scale), bound=ERROR[dtype])]
    if chosen is not None:
        error = _error("sparse_grouped", q, k.flatten(1), v.flatten(1), chosen, scale, own.kv_heads)
        checks.append(Check(what="sparse attention", value=error, bound=ERROR[dtype]))
    return checks


def _check_selection(index: IndexOperands, chosen: Tensor, dtype: torch.dtype) -> list[Check]:
    with ops.force("reference"):
        expected = ops.select_topk(*index)
    scores = index_scores(index.q, index.weights, index.keys)
    mass = [scores.gather(1, ids.clamp_min(0)).masked_fill(ids < 0, 0.0).sum() for ids in (chosen, expected)]
    checks = [Check(what="selected score mass", value=1 - float(mass[0] / mass[1]), bound=LOST_MASS)]
    if dtype == torch.float32:
        # Two keys whose scores differ by rounding may change places: one in a thousand, and their mass is the same.
        others = float((chosen != expected).float().mean())
        checks.append(Check(what="selection", value=others, bound=1e-3 if checks[0].value < 1e-6 else 0.0))
    return checks


def _check_experts(config: ModelConfig, dtype: torch.dtype) -> list[Check]:
    generator = torch.Generator().manual_seed(2)
    count = min(EXPERTS, config.n_routed_experts)
    used, hidden, width = min(2, count), config.hidden_size, config.moe_intermediate_size
    scores, bias = torch.rand(ROWS, count, generator=generator), torch.rand(count, generator=generator)

    def route() -> tuple[Tensor, Tensor]:
        return ops.route(scores, bias, topk=used, groups=1, topk_groups=1, normalise=True, scale=1.0)

    ids, weights = route()
    with ops.force("reference"):
        expected_ids, expected_weights = route()
    x = torch.randn(ROWS, hidden, generator=generator).to(dtype)
    gate_up = (torch.randn(count, 2 * width, hidden, generator=generator) * hidden**-0.5).to(dtype)
    down = (torch.randn(count, hidden, width, generator=generator) * width**-0.5).to(dtype)
    return [
        Check(what="routing", value=float((ids != expected_ids).float().mean()), bound=0.0),
        Check(what="routing weights", value=_relative(weights, expected_weights), bound=ERROR[torch.float32]),
        Check(what="experts", value=_error("experts", x, ids, weights, gate_up, down), bound=ERROR[dtype]),
    ]


def _error(name: str, *operands: object) -> float:
    """Relative error of an operation against its reference on the same operands in float32."""
    operation = getattr(ops, name)
    got = operation(*operands)
    with ops.force("reference"):
        wide = (x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x for x in operands)
        return _relative(got, operation(*wide))


def _relative(got: Tensor, expected: Tensor) -> float:
    difference = (got.float() - expected).square().mean().sqrt()
    return float(difference / expected.square().mean().sqrt())


@torch.inference_mode()
def check_engine(llm: LLM) -> Check:
    """Log-probabilities of a greedy text beyond the selection's size: engine and kernels against references alone.

    The median, because an untrained model has index scores and routes that differ by rounding only.
    """
    model = llm.model
    length = gate_context(model.config) - 64 + 17
    prompt = _prompt(model.config, min(length, llm.max_context - DECODED))
    greedy = SamplingParams(max_tokens=DECODED, temperature=0.0, ignore_eos=True, logprobs=0)
    output = llm.generate([prompt], greedy)[0]
    assert output.logprobs is not None
    got = torch.tensor([entry.logprob for entry in output.logprobs])
    with ops.force("reference"):
        logits = model(torch.tensor([prompt + output.token_ids[:-1]]))[0, -DECODED:].float()
    expected = logits.log_softmax(-1).gather(1, torch.tensor(output.token_ids)[:, None])[:, 0]
    dtype = next(model.parameters()).dtype
    value = float((got - expected).abs().median())
    return Check(what="engine", value=value, bound=NATS[dtype])


def _prompt(config: ModelConfig, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(config.vocab_size, (length,), generator=generator).tolist()
