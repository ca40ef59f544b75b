"""The native decode step against the model's own forward pass: any configuration, any batch, the same bits twice."""

import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from indexshare import ops
from indexshare.adapt.quantized import quantize_weights
from indexshare.cache.paged import PagedCache
from indexshare.cache.view import InFlightView
from indexshare.config import ModelConfig, SharePlan, preset
from indexshare.config.rope import RopeParameters
from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.selection import FULL_ATTENTION
from indexshare.ops.native import LEVELS, Level, _load, best_level, build, native, processor_features
from indexshare.step import native_step
from indexshare.step.native_step import MAX_ROWS, NativeStep
from tests.tolerance import TOL

pytestmark = pytest.mark.skipif(native().library is None, reason=native().reason)


def random_config(seed: int, *, even: bool = False) -> ModelConfig:
    """Small and crooked: sizes that fill no vector, every option that the step knows. `even` widths suit bfloat16."""
    draw = random.Random(seed)
    layers, groups = draw.randint(2, 7), draw.choice([1, 1, 2, 3])
    dense = draw.randint(0, min(3, layers))
    pattern = "F" + "".join(draw.choice("FSS") for _ in range(layers - 1))
    rope, grain = 2 * draw.randint(1, 9), 2 if even else 1
    yarn = RopeParameters(rope_theta=1e4, rope_type="yarn", factor=4.0, mscale=1.0, mscale_all_dim=0.7)
    return preset("tiny").replace(
        num_hidden_layers=layers, indexer_types=SharePlan.from_pattern(pattern).types,
        mlp_layer_types=("dense",) * dense + ("sparse",) * (layers - dense), num_nextn_predict_layers=0,
        vocab_size=draw.randint(50, 300), hidden_size=draw.randint(17, 90), intermediate_size=draw.randint(5, 140),
        moe_intermediate_size=draw.randint(3, 70), num_attention_heads=draw.randint(1, 11),
        q_lora_rank=draw.randint(4, 50), kv_lora_rank=grain * draw.randint(2, 40), qk_nope_head_dim=draw.randint(1, 80),
        qk_rope_head_dim=rope, v_head_dim=draw.randint(1, 70), index_n_heads=draw.randint(1, 9),
        index_head_dim=rope + grain * draw.randint(0, 20), index_topk=draw.randint(1, 40),
        n_routed_experts=groups * draw.randint(4, 9), num_experts_per_tok=draw.randint(1, 4), n_group=groups,
        topk_group=draw.randint(1, groups), n_shared_experts=draw.randint(0, 2), norm_topk_prob=draw.random() < 0.7,
        indexer_rope_interleave=draw.random() < 0.6, attention_bias=draw.random() < 0.4,
        tie_word_embeddings=draw.random() < 0.3, rope_parameters=draw.choice([RopeParameters(), yarn]),
        max_position_embeddings=4096, initializer_range=0.2,
    )  # fmt: skip


def random_model(config: ModelConfig, seed: int) -> GlmMoeDsa:
    """Biases and norms too are drawn, so that a forgotten one shows."""
    model, generator = GlmMoeDsa(config).initialise(seed).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "bias" in name or "norm" in name:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model


def stored_rows(cache: PagedCache) -> list[torch.Tensor]:
    return [pool.stored for pool in cache.pools.values()]


class Twins:
    """A model on two caches with the same past: one for the native step, one for the torch path."""

    def __init__(self, model: GlmMoeDsa, lengths: list[int], *, block_size: int = 8, steps: int = 8) -> None:
        self.model, self.lengths, self.native = model, lengths, NativeStep(model)
        dtype, per = model.embed_tokens.weight.dtype, [-(-(n + steps) // block_size) for n in lengths]
        self.caches = [PagedCache(model.config, sum(per) + 2, block_size, dtype) for _ in range(2)]
        for cache in self.caches:  # what was never written must not be read
            for pool in stored_rows(cache):
                pool.fill_(torch.nan)
        blocks = random.Random(len(lengths)).sample(range(sum(per) + 2), sum(per))
        self.tables = [[blocks.pop() for _ in range(n)] for n in per]
        ids = torch.randint(model.config.vocab_size, (sum(lengths),))
        with torch.inference_mode(), ops.force("torch"):
            for cache in self.caches:
                model.trunk(ids, cache.view(self.tables, [(0, n) for n in lengths]))

    def step(self, sizes: list[int], below: int = 0) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Hidden states and logits of both, for `sizes` new tokens of each sequence; the caches must agree too."""
        ids = torch.randint(self.model.config.vocab_size, (sum(sizes),))
        spans = list(zip(self.lengths, sizes, strict=True))
        mine, other = (cache.view(self.tables, spans) for cache in self.caches)
        with torch.inference_mode():
            assert self.native.refusal(mine) is None
            actual = self.native(ids.tolist(), mine, full_attention_below=below)
            with ops.force("torch"):
                hidden = self.model.trunk(ids, other, full_attention_below=below)
                expected = hidden, self.model.logits(hidden)
        self.lengths = [n + size for n, size in spans]
        return actual, expected

    def check_caches(self, **bounds: float) -> None:
        """What the steps wrote, and that they wrote nothing else."""
        for pool, other in zip(*map(stored_rows, self.caches), strict=True):
            assert torch.equal(pool.isnan(), other.isnan())
            torch.testing.assert_close(pool, other, equal_nan=True, **bounds)


@pytest.mark.parametrize("seed", range(16))
def test_random_models_in_float32(seed: int) -> None:
    config, draw = random_config(seed), random.Random(seed)
    lengths = [draw.randint(1, 3 * config.index_topk) for _ in range(draw.randint(1, 6))]
    twins = Twins(random_model(config, seed), lengths, block_size=draw.choice([1, 5, 8]))
    below = draw.choice([0, 0, config.index_topk + 7, FULL_ATTENTION])
    bounds = TOL["decode step", "float32"].bounds
    for _ in range(3):
        actual, expected = twins.step([1] * len(lengths), below)
        torch.testing.assert_close(actual, expected, **bounds)
    twins.check_caches(**bounds)


def total_variation(a: Tensor, b: Tensor) -> Tensor:
    return 0.5 * (a.softmax(-1) - b.softmax(-1)).abs().sum(-1)


@pytest.mark.parametrize("seed", range(16, 24))
def test_random_models_in_bfloat16(seed: int) -> None:
    """Without router and selection, where a rounding step would choose another expert or token."""
    config, draw = random_config(seed, even=True), random.Random(seed)
    config = config.replace(mlp_layer_types=("dense",) * config.num_hidden_layers)
    lengths = [draw.randint(1, 3 * config.index_topk) for _ in range(draw.randint(1, 6))]
    twins = Twins(random_model(config, seed).bfloat16(), lengths)
    actual, expected = twins.step([1] * len(lengths), FULL_ATTENTION)
    assert total_variation(actual[1], expected[1]).mean() < TOL["decode step", "bfloat16"].atol


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("seed", range(40, 46))
def test_random_models_with_packed_weights(seed: int, weights: str) -> None:
    """Against the same weights dequantised; again without router and selection."""
    config, draw = random_config(seed), random.Random(seed)
    config = config.replace(mlp_layer_types=("dense",) * config.num_hidden_layers)
    lengths = [draw.randint(1, 3 * config.index_topk) for _ in range(draw.randint(1, 6))]
    twins = Twins(quantize_weights(random_model(config, seed), weights), lengths)
    for _ in range(2):
        actual, expected = twins.step([1] * len(lengths), FULL_ATTENTION)
        torch.testing.assert_close(actual, expected, **TOL["decode step, packed weights", "float32"].bounds)


def test_bfloat16_is_as_near_to_float32_as_torch_is() -> None:
    """Router and selection included, over many models."""
    errors = {"native": 0.0, "torch": 0.0}
    for seed in range(24, 30):
        config = random_config(seed, even=True)
        lengths = [random.Random(seed).randint(1, 3 * config.index_topk) for _ in range(6)]
        results = []
        for dtype in (torch.bfloat16, torch.float32):
            torch.manual_seed(seed)
            model = random_model(config, seed).bfloat16().to(dtype)
            results.append([logits for _, logits in Twins(model, list(lengths)).step([1] * 6)])
        (native_logits, torch_logits), (_, truth) = results
        errors["native"] += float(total_variation(native_logits, truth).mean()) / 6
        errors["torch"] += float(total_variation(torch_logits, truth).mean()) / 6
    assert errors["native"] < errors["torch"] + TOL["decode step, rounded choices", "bfloat16"].atol, errors


@pytest.mark.parametrize("sizes", [[3, 1, 5], [1, 9, 2]])
def test_several_new_tokens_of_a_sequence_see_each_other(sizes: list[int]) -> None:
    twins = Twins(random_model(preset("tiny"), 1), [3, 30, 6], steps=16)
    actual, expected = twins.step(sizes)
    torch.testing.assert_close(actual, expected, **TOL["decode step", "float32"].bounds)
    twins.check_caches(**TOL["decode step", "float32"].bounds)


def test_from_the_first_token_on() -> None:
    """Without any past, one token at a time, against one pass over everything."""
    model, ids = random_model(preset("tiny"), 2), torch.randint(256, (40,))
    cache, step, parts = PagedCache(model.config, 8, 8), NativeStep(model), []
    with torch.inference_mode():
        for at, token in enumerate(ids.tolist()):
            parts.append(step([token], cache.view([[5, 0, 6, 1, 2]], [(at, 1)]))[0])
        expected = model.trunk(ids, InFlightView([40]))
    torch.testing.assert_close(torch.cat(parts), expected, **TOL["decode step", "float32"].bounds)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def long_model(dtype: torch.dtype, weights: str | None) -> GlmMoeDsa:
    """Enough keys for several parts of the indexer and stretches of the attention."""
    kinds: dict[str, object] = {"indexer_types": ("full",) * 3, "mlp_layer_types": ("dense", "sparse", "sparse")}
    config = preset("tiny").replace(index_topk=300, num_hidden_layers=3, **kinds)
    model = random_model(config, 3).to(dtype)
    return model if weights is None else quantize_weights(model, weights)


@pytest.mark.parametrize(
    ("dtype", "weights"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.float32, "int8"), (torch.bfloat16, "int4")],
)
@pytest.mark.usefixtures("threads")
def test_threads_and_company_do_not_change_a_bit(dtype: torch.dtype, weights: str | None) -> None:
    native_step, lengths = NativeStep(long_model(dtype, weights)), [3000, 7, 299, 1500, 40]
    ids, cache = torch.randint(256, (5,)).tolist(), PagedCache(native_step.model.config, 80, 64, dtype)
    for pool in stored_rows(cache):
        pool.normal_()
    tables = [torch.arange(r, 80, 5).tolist() * 4 for r in range(5)]

    def step(rows: list[int], count: int) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(count)
        view = cache.view([tables[r] for r in rows], [(lengths[r], 1) for r in rows])
        with torch.inference_mode():
            return native_step([ids[r] for r in rows], view)

    expected = step([0, 1, 2, 3, 4], 1)
    for rows, count in (([0, 1, 2, 3, 4], 2), ([0, 1, 2, 3, 4], 3), ([0], 1), ([0], 3), ([3, 1], 2), ([4, 0, 2], 2)):
        for actual, wanted in zip(step(rows, count), expected, strict=True):
            assert torch.equal(actual, wanted[rows]), (rows, count)


@pytest.mark.usefixtures("threads")
def test_a_thread_that_comes_late_changes_nothing() -> None:
    """More threads than cores: some are layers behind, where another number of experts was in use."""
    kinds: dict[str, object] = {"indexer_types": ("full",) * 12, "mlp_layer_types": ("sparse",) * 12}
    model = random_model(preset("tiny").replace(num_hidden_layers=12, moe_intermediate_size=256, **kinds), 3)
    cache, native_step = PagedCache(model.config, 5, 64), NativeStep(model)
    for pool in stored_rows(cache):
        pool.normal_()
    view, ids = cache.view([[i] for i in range(5)], [(n, 1) for n in (30, 7, 12, 15, 40)]), [8, 2, 77, 31, 200]
    with torch.inference_mode():
        torch.set_num_threads(1)
        expected = native_step(ids, view)
        torch.set_num_threads(min(64, max(16, 2 * (os.cpu_count() or 1))))
        for _ in range(150):
            assert all(map(torch.equal, native_step(ids, view), expected))


def test_only_wanted_logits_are_made() -> None:
    model = random_model(preset("tiny"), 4)
    cache, step = PagedCache(model.config, 4, 8), NativeStep(model)
    view = cache.view([[0], [2], [3]], [(0, 1)] * 3)
    with torch.inference_mode():
        hidden, logits = step([1, 2, 3], view, wanted=[2, 0])
        assert torch.equal(logits, step([1, 2, 3], view)[1][[2, 0]])
        assert step([1, 2, 3], view, wanted=[])[1].shape == (0, 256)
        torch.testing.assert_close(model.logits(hidden)[[2, 0]], logits, **TOL["decode step", "float32"].bounds)


def test_changed_and_replaced_weights_are_seen() -> None:
    model = random_model(preset("tiny"), 5)
    cache, step = PagedCache(model.config, 2, 8), NativeStep(model)

    def check() -> Tensor:
        with torch.inference_mode():
            logits = step([7], cache.view([[1]], [(0, 1)]))[1]
            expected = model.logits(model.trunk(torch.tensor([7]), InFlightView([1])))
        torch.testing.assert_close(logits, expected, **TOL["decode step", "float32"].bounds)
        return logits

    seen = [check()]
    with torch.no_grad():
        model.layers[2].self_attn.o_proj.weight.mul_(3.0)
    seen.append(check())
    model.layers[3].mlp.gate.weight = torch.nn.Parameter(torch.randn(8, 32))
    seen.append(check())
    model.layers[1].self_attn.kv_a_layernorm.weight.data = torch.rand(16)
    seen.append(check())
    assert len({tuple(logits[0, :3].tolist()) for logits in seen}) == 4


def test_within_a_sequence_replaced_weights_are_seen_on_request() -> None:
    model = random_model(preset("tiny"), 5)
    cache, step = PagedCache(model.config, 2, 8), NativeStep(model)

    def second() -> Tensor:
        with torch.inference_mode():
            return step([9], cache.view([[1]], [(1, 1)]))[1]

    with torch.inference_mode():
        step([7], cache.view([[1]], [(0, 1)]))
    before = second()
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)  # in place: seen at once
    torch.testing.assert_close(second(), 2 * before)
    model.lm_head.weight = torch.nn.Parameter(3 * model.lm_head.weight.detach())
    torch.testing.assert_close(second(), 2 * before)  # the old ones are kept alive
    step.look_again()
    torch.testing.assert_close(second(), 6 * before)


def test_matrices_packed_after_a_generation_are_used() -> None:
    model, params = random_model(preset("tiny"), 5), SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    llm, prompt = LLM(model), [random.randrange(256) for _ in range(40)]
    before = llm.generate([prompt], params)[0].token_ids
    quantize_weights(model, "int4")
    after = llm.generate([prompt], params)[0].token_ids
    assert after == LLM(model).generate([prompt], params)[0].token_ids != before


def test_a_prompt_is_followed_by_the_weights_that_read_it() -> None:
    model = random_model(preset("tiny"), 5)
    llm, params = LLM(model), SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    llm.generate([[3, 4, 5]], params)
    model.layers[1].self_attn.o_proj.weight = torch.nn.Parameter(
        torch.randn_like(model.layers[1].self_attn.o_proj.weight)
    )
    prompt = [random.randrange(256) for _ in range(40)]
    assert llm.generate([prompt], params)[0].token_ids == LLM(model).generate([prompt], params)[0].token_ids


def test_where_the_step_does_not_apply() -> None:
    model = random_model(preset("tiny"), 6)
    cache, step = PagedCache(model.config, 40, 1), NativeStep(model)
    view = cache.view([[0]], [(0, 1)])
    assert step.refusal(view) == "gradients are wanted"
    with torch.inference_mode():
        assert step.refusal(view) is None
        assert step.refusal(InFlightView([1])) == "not a paged cache"
        many = cache.view([list(range(MAX_ROWS + 1))], [(0, MAX_ROWS + 1)])
        assert step.refusal(many) == f"{MAX_ROWS + 1} rows, more than {MAX_ROWS}"
        other = PagedCache(model.config, 1, 1, torch.bfloat16).view([[0]], [(0, 1)])
        assert step.refusal(other) == "dtypes torch.float32, torch.bfloat16"
        with ops.force("torch"):
            assert step.refusal(view) == "forced"
            row = native_step.explain()
            assert row == {"op": "decode step", "implementation": "torch", "reason": "forced"}
        with ops.force("cpu"):
            assert step.refusal(view) is None
        odd = GlmMoeDsa(preset("tiny").replace(kv_lora_rank=15)).bfloat16()
        view = PagedCache(odd.config, 1, 1, torch.bfloat16).view([[0]], [(0, 1)])
        assert NativeStep(odd).refusal(view) == "odd width in bfloat16"


def test_bad_input_is_refused_and_writes_nothing() -> None:
    model = random_model(preset("tiny").replace(max_position_embeddings=20), 7)
    cache, step = PagedCache(model.config, 4, 8), NativeStep(model)
    for pool in stored_rows(cache):
        pool.fill_(0)
    with torch.inference_mode():
        with pytest.raises(ValueError, match=r"token id 256 is outside the vocabulary 0\.\.255"):
            step([3, 256], cache.view([[0], [1]], [(0, 1), (0, 1)]))
        with pytest.raises(ValueError, match="token_ids has shape"):
            step([3], cache.view([[0], [1]], [(0, 1), (0, 1)]))
        with pytest.raises(ValueError, match="21 tokens, the model's context is 20"):
            step([3], cache.view([[0, 1, 2]], [(20, 1)]))
        assert not any(pool.any() for pool in stored_rows(cache))
        model.layers[0].self_attn.o_proj.weight = torch.nn.Parameter(torch.zeros(24, 32).t())
        for _ in range(2):  # the decoder of before is not taken instead
            with pytest.raises(ValueError, match="make it contiguous"):
                step([3], cache.view([[0]], [(0, 1)]))


@pytest.mark.parametrize("weights", [None, "int8"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row(bad: float, weights: str | None) -> None:
    model = random_model(preset("tiny"), 8)
    if weights:
        quantize_weights(model, weights)
    twins = Twins(model, [12, 30])
    with torch.no_grad():  # only now: the drawn prompts may hold token 9
        model.embed_tokens.weight[9, 3] = bad
    with torch.inference_mode():
        views = [twins.caches[0].view(twins.tables, [(12, 1), (30, 1)]) for _ in range(2)]
        clean = twins.native([4, 5], views[0])[1]
        broken = twins.native([9, 5], views[1])[1]
        assert torch.equal(broken[1], clean[1]) and not bool(broken[0].isfinite().any())
        assert torch.equal(twins.native([4, 5], views[0])[1], clean)


def test_generation_takes_the_native_step_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(preset("tiny"), 9)
    prompts = [[random.randrange(256) for _ in range(n)] for n in (5, 90, 9, 33)]
    params, rows = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True), []
    call = NativeStep.__call__

    def counted(self: NativeStep, ids: list[int], *args: object, **settings: object) -> tuple[Tensor, Tensor]:
        rows.append(len(ids))
        return call(self, ids, *args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(NativeStep, "__call__", counted)
    outputs = [out.token_ids for out in LLM(model, cache_tokens=1024).generate(prompts, params)]
    assert rows.count(4) >= 14
    with ops.force("torch"):
        expected = [out.token_ids for out in LLM(model, cache_tokens=1024).generate(prompts, params)]
    assert outputs == expected


def check_everything() -> None:
    """The step with every kind of weights, for other builds of the kernels."""
    torch.manual_seed(0)
    for seed in range(3):
        test_random_models_in_float32(seed)
        test_random_models_in_bfloat16(16 + seed)
        for weights in ("int8", "int4"):
            test_random_models_with_packed_weights(40 + seed, weights)
    for weights in (None, "int8"):
        test_what_is_not_finite_stays_in_its_row(torch.nan, weights)


@pytest.mark.slow
@pytest.mark.parametrize("level", [each for each in LEVELS if each.needs <= processor_features()], ids=lambda e: e.name)
def test_every_level_agrees_with_torch(level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = _load(build(tmp_path, level), level)
    assert loaded.library is not None, loaded.reason
    for room in ("indexshare.step.native_step", "indexshare.step.decoder", "indexshare.ops.packed.packing"):
        monkeypatch.setattr(f"{room}.native", lambda: loaded)
    check_everything()


SANITIZED = """
    import pathlib, sys
    from indexshare.ops.packed import packing
    from indexshare.step import decoder, native_step
    from indexshare.ops.native import Level, _load
    from tests.unit.step import test_native_step as tests
    loaded = _load(pathlib.Path(sys.argv[1]), Level(name="sanitized", needs=frozenset(), flags=()))
    assert loaded.library is not None, loaded.reason
    native_step.native = decoder.native = packing.native = lambda: loaded
    tests.check_everything()
    print("clean")
"""


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """Address and undefined-behaviour checks, in a process of its own: the checker must be loaded first."""
    flags = (*best_level().flags, "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    try:
        library = build(tmp_path, Level(name="sanitized", needs=frozenset(), flags=flags))
    except OSError as error:
        pytest.skip(f"this compiler has no sanitizers: {error}")
    runtimes = [
        subprocess.run(["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {"LD_PRELOAD": ":".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SANITIZED), str(library)],
        env=environment | {"PYTHONPATH": ".", "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert run.returncode == 0 and "clean" in run.stdout, run.stderr[-3000:]
