"""Groups, exact states, accumulation and clipping of the mixed optimizer, and learning-rate schedules."""

import copy
import io
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from indexshare.config import ModelConfig
from indexshare.model.glm import GlmMoeDsa
from indexshare.train.optim import MixedOptimizer, OptimConfig, Schedule, is_indexer
from tests.tolerance import TOL

RATES = OptimConfig(muon_lr=1e-3, adam_lr=2e-3, router_lr=3e-3, indexer_lr=4e-3, weight_decay=0.1)


def _model(config: ModelConfig, dtype: torch.dtype = torch.float32) -> GlmMoeDsa:
    return GlmMoeDsa(config).initialise(1).to(dtype)


def _optimizers(optimizer: MixedOptimizer) -> list[torch.optim.Optimizer]:
    return optimizer._optimizers


def _settings(optimizer: MixedOptimizer) -> dict[str, tuple[str, float, float]]:
    """Name of each parameter -> optimizer, peak rate, weight decay."""
    names = {id(master): name for name, (_, master) in optimizer._pairs.items()}
    found = {}
    for one in _optimizers(optimizer):
        for group in one.param_groups:
            for p in group["params"]:
                assert id(p) not in found
                found[names[id(p)]] = (type(one).__name__, group["peak_lr"], group["weight_decay"])
    assert found.keys() == optimizer._pairs.keys()
    return found


def _random_gradients(optimizer: MixedOptimizer, seed: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator).to(p.dtype) * scale for p in optimizer.parameters]


def _update(optimizer: MixedOptimizer, seed: int, factor: float = 1.0) -> dict[str, float]:
    optimizer.accumulate(_random_gradients(optimizer, seed))
    norms = optimizer.clip()
    optimizer.step(factor)
    return norms


EXPECTED = {
    "embed_tokens.weight": ("AdamW", 2e-3, 0.1),
    "lm_head.weight": ("AdamW", 2e-3, 0.1),
    "norm.weight": ("AdamW", 2e-3, 0.0),
    "layers.1.input_layernorm.weight": ("AdamW", 2e-3, 0.0),
    "layers.1.self_attn.kv_a_layernorm.weight": ("AdamW", 2e-3, 0.0),
    "layers.1.self_attn.q_a_proj.weight": ("Muon", 1e-3, 0.1),
    "layers.1.self_attn.q_b_proj.weight": ("Muon", 1e-3, 0.1),
    "layers.1.self_attn.kv_a_proj_with_mqa.weight": ("Muon", 1e-3, 0.1),
    "layers.1.self_attn.kv_b_proj.weight": ("Muon", 1e-3, 0.1),
    "layers.1.self_attn.o_proj.weight": ("Muon", 1e-3, 0.1),
    "layers.0.mlp.gate_proj.weight": ("Muon", 1e-3, 0.1),
    "layers.0.mlp.down_proj.weight": ("Muon", 1e-3, 0.1),
    "layers.1.mlp.gate.weight": ("AdamW", 3e-3, 0.0),
    "layers.1.mlp.experts.gate_up_proj": ("Muon", 1e-3, 0.1),
    "layers.1.mlp.experts.down_proj": ("Muon", 1e-3, 0.1),
    "layers.1.mlp.shared_experts.up_proj.weight": ("Muon", 1e-3, 0.1),
    "layers.1.self_attn.indexer.wq_b.weight": ("AdamW", 4e-3, 0.1),
    "layers.1.self_attn.indexer.wk.weight": ("AdamW", 4e-3, 0.1),
    "layers.1.self_attn.indexer.weights_proj.weight": ("AdamW", 4e-3, 0.1),
    "layers.1.self_attn.indexer.k_norm.weight": ("AdamW", 4e-3, 0.0),
    "layers.1.self_attn.indexer.k_norm.bias": ("AdamW", 4e-3, 0.0),
    "mtp.eh_proj.weight": ("Muon", 1e-3, 0.1),
    "mtp.enorm.weight": ("AdamW", 2e-3, 0.0),
    "mtp.layer.mlp.experts.down_proj": ("Muon", 1e-3, 0.1),
    "mtp.layer.self_attn.indexer.wk.weight": ("AdamW", 4e-3, 0.1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_multiplies_in_the_type_of_the_model(model_config: ModelConfig, dtype: torch.dtype) -> None:
    optimizer = MixedOptimizer(_model(model_config, dtype), model_config, OptimConfig())
    assert optimizer._muon is not None and optimizer._muon._ns_dtype == dtype


def test_what_goes_where(model_config: ModelConfig) -> None:
    found = _settings(MixedOptimizer(_model(model_config), model_config, RATES))
    assert {name: found[name] for name in EXPECTED} == EXPECTED
    # Nothing else is left to chance: every matrix outside embeddings, router and indexers is under Muon.
    adam = {n for n, (kind, _, _) in found.items() if kind == "AdamW" and n.endswith(("proj.weight", "_proj"))}
    assert all(is_indexer(name) for name in adam)


def test_splits_belong_to_the_up_projections(model_config: ModelConfig) -> None:
    optimizer = MixedOptimizer(_model(model_config), model_config, RATES)
    names = {id(master): name for name, (_, master) in optimizer._pairs.items()}
    c, heads = model_config, model_config.num_attention_heads
    shapes = {
        "self_attn.kv_b_proj.weight": [
            (heads, c.qk_nope_head_dim, c.kv_lora_rank),
            (heads, c.v_head_dim, c.kv_lora_rank),
        ],
        "self_attn.q_b_proj.weight": [(heads, c.qk_head_dim, c.q_lora_rank)],
        "experts.gate_up_proj": [(c.n_routed_experts, c.moe_intermediate_size, c.hidden_size)] * 2,
    }
    for group in _optimizers(optimizer)[1].param_groups:
        (p,) = group["params"]
        wanted = next((s for end, s in shapes.items() if names[id(p)].endswith(end)), None)
        parts = None if group["split"] is None else [tuple(part.shape) for part in group["split"](p)]
        assert parts == wanted, names[id(p)]


def test_without_muon_everything_is_under_adamw(model_config: ModelConfig) -> None:
    optimizer = MixedOptimizer(_model(model_config), model_config, OptimConfig(muon_lr=0.0))
    assert {kind for kind, _, _ in _settings(optimizer).values()} == {"AdamW"}
    _update(optimizer, 0)


def test_only_trainable_parameters_take_part(model_config: ModelConfig) -> None:
    model = _model(model_config)
    for name, p in model.named_parameters():
        p.requires_grad_(is_indexer(name))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = MixedOptimizer(model, model_config, RATES)
    norms = _update(optimizer, 0)
    assert norms.keys() == {"indexer_grad_norm"}
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if is_indexer(n)} and changed
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        MixedOptimizer(model.requires_grad_(False), model_config, RATES)


def _assert_same(a: Any, b: Any) -> None:
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            _assert_same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_states_are_exact(dtype: torch.dtype, model_config: ModelConfig) -> None:
    """Saved, loaded into a fresh model, and trained on: every bit as if nothing had happened."""
    model = _model(model_config, dtype)
    optimizer = MixedOptimizer(model, model_config, RATES)
    for seed in range(3):
        _update(optimizer, seed)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    masters = {n: m.clone() for n, m in optimizer.state_dict()["masters"].items()}
    assert all(m.dtype == torch.float32 for m in masters.values())
    if dtype == torch.bfloat16:  # masters hold what the model rounds away
        assert any(not torch.equal(m, m.bfloat16().float()) for m in masters.values())

    other = GlmMoeDsa(model_config).initialise(2).to(dtype)
    resumed = MixedOptimizer(other, model_config, RATES)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    _assert_same(resumed.state_dict(), optimizer.state_dict())
    for seed in range(3, 6):
        assert _update(optimizer, seed, 0.5) == _update(resumed, seed, 0.5)
    _assert_same(resumed.state_dict(), optimizer.state_dict())
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert torch.equal(p, optimizer.state_dict()["masters"][name].to(dtype)), name


def test_a_resumed_run_takes_new_rates(model_config: ModelConfig) -> None:
    """After a divergence the advice is to lower the rate and resume: the saved rate must not win."""
    equal = OptimConfig(adam_lr=4e-3, indexer_lr=4e-3, weight_decay=0.1)
    optimizer = MixedOptimizer(_model(model_config), model_config, equal)
    _update(optimizer, 0)
    lower = OptimConfig(muon_lr=1e-4, adam_lr=2e-4, indexer_lr=3e-4, weight_decay=0.2, momentum=0.9)
    resumed = MixedOptimizer(_model(model_config), model_config, lower)
    before = _settings(resumed)
    resumed.load_state_dict(optimizer.state_dict())
    assert _settings(resumed) == before
    _update(resumed, 1, factor=0.5)
    for one in _optimizers(resumed):
        assert all(group["lr"] == 0.5 * group["peak_lr"] for group in one.param_groups)
    assert _optimizers(resumed)[1].param_groups[0]["momentum"] == 0.9


def test_states_of_other_parameters_are_refused(model_config: ModelConfig) -> None:
    model = _model(model_config)
    optimizer = MixedOptimizer(model, model_config, RATES)
    state = optimizer.state_dict()
    no_muon = MixedOptimizer(model, model_config, OptimConfig(muon_lr=0.0))
    with pytest.raises(ValueError, match="Muon switched on or off"):
        no_muon.load_state_dict(state)
    model.lm_head.requires_grad_(False)
    with pytest.raises(ValueError, match=r"for instance \['lm_head.weight'\]"):
        MixedOptimizer(model, model_config, RATES).load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_are_summed_in_float32(dtype: torch.dtype, model_config: ModelConfig) -> None:
    """Two hundred small bfloat16 gradients on top of a large one: summed in bfloat16 they would be lost."""
    model = _model(model_config, dtype)
    optimizer = MixedOptimizer(model, model_config, RATES)
    ones = [torch.ones_like(p) for p in optimizer.parameters]
    small: list[Tensor | None] = [torch.full_like(p, 2.0**-9) for p in optimizer.parameters]
    small[0] = None
    optimizer.accumulate(ones)
    for _ in range(256):
        optimizer.accumulate(small)
    sums = [master.grad for _, master in optimizer._pairs.values()]
    assert all(g is not None and g.dtype == torch.float32 for g in sums)
    assert (sums[0] == 1.0).all() and all((g == 1.5).all() for g in sums[1:] if g is not None)
    assert all((g == 1).all() for g in ones)  # what was handed over stays as it is


def test_clipping_treats_indexers_apart(model_config: ModelConfig) -> None:
    optimizer = MixedOptimizer(_model(model_config), model_config, OptimConfig(clip_norm=0.5))
    grads = _random_gradients(optimizer, 0)
    indexer = [is_indexer(name) for name in optimizer._pairs]
    grads = [g * (1e-3 if i else 3.0) for g, i in zip(grads, indexer, strict=True)]
    optimizer.accumulate(grads)
    masters = [master for _, master in optimizer._pairs.values()]

    def norm(wanted: bool) -> Tensor:
        parts = [m.grad.norm() for m, i in zip(masters, indexer, strict=True) if i == wanted and m.grad is not None]
        return torch.stack(parts).norm()

    large, little = norm(False), norm(True)
    assert large > 0.5 > little > 0.01
    norms = optimizer.clip()
    bounds = TOL["clipped norm", "float32"].bounds
    torch.testing.assert_close(
        torch.tensor([norms["grad_norm"], norms["indexer_grad_norm"]]), torch.stack([large, little]), **bounds
    )
    torch.testing.assert_close(norm(False), torch.tensor(0.5), **bounds)
    assert norm(True) == little  # small gradients are left as they are


def test_a_bad_gradient_is_reported_before_any_update(model_config: ModelConfig) -> None:
    optimizer = MixedOptimizer(_model(model_config), model_config, RATES)
    grads = _random_gradients(optimizer, 0)
    grads[3].view(-1)[0] = torch.nan
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.accumulate(grads)
    norms = optimizer.clip()
    assert norms["grad_norm"] != norms["grad_norm"]
    _assert_same(optimizer.state_dict(), before)


def test_gradients_are_forgotten_after_a_step(model_config: ModelConfig) -> None:
    one, two = (MixedOptimizer(_model(model_config), model_config, RATES) for _ in range(2))
    assert _update(one, 0) == _update(two, 0)
    assert _update(one, 1) == _update(two, 1)
    assert all(master.grad is None for _, master in one._pairs.values())


# Schedules


@pytest.mark.parametrize("kind", ["wsd", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 7, 100, 1000])
def test_schedules_rise_stay_and_fall(kind: Any, steps: int) -> None:
    schedule = Schedule(kind=kind, warmup=0.1, decay=0.3, final=0.1)
    factors = [schedule.factor(step, steps) for step in range(steps)]
    assert all(0.0 < f <= 1.0 for f in factors)
    assert max(factors) == 1.0
    top = factors.index(1.0)
    assert top == max(1, round(0.1 * steps)) - 1
    assert all(a < b for a, b in itertools.pairwise(factors[: top + 1]))
    assert all(a >= b for a, b in itertools.pairwise(factors[top:]))
    if steps >= 100:
        rising = (1 - factors[0]) / max(1, top)
        assert max(abs(a - b) for a, b in itertools.pairwise(factors)) < rising + 1e-9  # nowhere a jump
        if kind == "constant":
            assert factors[-1] == 1.0
        else:
            assert 0.1 <= factors[-1] <= 0.14


def test_wsd_is_flat_until_the_decay() -> None:
    factors = [Schedule(warmup=0.02, decay=0.25).factor(step, 400) for step in range(400)]
    assert all(f == 1.0 for f in factors[7:300]) and factors[301] < 1.0
    assert factors[-1] == pytest.approx(1 / 101)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule(kind="linear"), "kind is 'linear'"),  # type: ignore[arg-type]
        (lambda: Schedule(warmup=1.5), r"warmup is 1\.5"),
        (lambda: Schedule(final=-0.1), r"final is -0\.1"),
        (lambda: OptimConfig(adam_lr=-1.0), r"adam_lr is -1\.0"),
        (lambda: OptimConfig(clip_norm=0.0), r"clip_norm is 0\.0"),
    ],
)
def test_settings_mistakes(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
