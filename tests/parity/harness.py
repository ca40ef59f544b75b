"""Random small models of the public implementation, and the same models loaded by this package.

Everything goes through files: transformers saves, `load_model` loads. A comparison of logits is only
meaningful where no choice (index top-k, expert top-k, group top-k) hangs on rounding, so the public model is
watched while it runs and its own top-k margins are measured; inputs with a near-tie are drawn again. Our side
has no say in that.
"""

import functools
import logging
import os
import random
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

from indexshare import GlmMoeDsa, load_model

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
logging.getLogger("transformers").setLevel(logging.ERROR)

# Below this relative gap between the last chosen and the first rejected score, float32 rounding may decide.
MIN_MARGIN = 3e-6
_MASKED = torch.finfo(torch.float32).min / 4


class TopkMargins(TorchDispatchMode):
    """Smallest relative gap at the boundary of every top-k that runs inside, per sequence of the batch.

    All choices of the public model are made on tensors whose leading dimension is the batch, or batch x
    length.
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.smallest = torch.full((batch_size,), float("inf"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.topk.default:
            self._look(args[0], args[1])
        return result

    def _look(self, scores: torch.Tensor, k: int) -> None:
        if k >= scores.shape[-1]:
            return
        top = scores.float().topk(k + 1, dim=-1).values
        last, rejected = top[..., k - 1], top[..., k]
        size = torch.where(scores > _MASKED, scores.abs(), torch.zeros_like(scores)).amax(-1).clamp_min(1e-30)
        gap = torch.where(rejected > _MASKED, (last - rejected) / size, float("inf"))
        self.smallest = torch.minimum(self.smallest, gap.reshape(len(self.smallest), -1).amin(-1))


@dataclass(frozen=True)
class Case:
    """One random configuration; `sizes` are keyword arguments of the public config class."""

    seed: int
    sizes: dict[str, Any]
    model_type: str = "glm_moe_dsa"
    attention: str = "eager"

    def __str__(self) -> str:
        kinds = "".join(kind[0].upper() for kind in self.sizes.get("indexer_types", ["dense-only plan"]))
        return f"{self.seed}-{kinds}-k{self.sizes['index_topk']}-{self.attention}"


def random_sizes(rng: random.Random) -> dict[str, Any]:
    """Small, odd sizes in which every mechanism matters: short selections, groups, dense layers."""
    layers = rng.randint(3, 7)
    groups = rng.choice([1, 1, 2, 4])
    topk_group = rng.randint(1, groups)
    experts = groups * rng.randint(2, 4)
    hidden = rng.choice([24, 32, 48])
    rope = rng.choice([4, 8, 16])
    return {
        "vocab_size": rng.choice([61, 97, 128]),
        "hidden_size": hidden,
        "intermediate_size": rng.choice([40, 56]),
        "moe_intermediate_size": rng.choice([12, 20]),
        "num_hidden_layers": layers,
        "num_attention_heads": (heads := rng.choice([1, 2, 3, 4])),
        "num_key_value_heads": heads,
        "n_shared_experts": rng.choice([1, 1, 2]),
        "n_routed_experts": experts,
        "num_experts_per_tok": rng.randint(1, max(1, experts // groups * topk_group - 1)),
        "n_group": groups,
        "topk_group": topk_group,
        "norm_topk_prob": rng.random() < 0.8,
        "routed_scaling_factor": rng.choice([1.0, 2.5]),
        "q_lora_rank": rng.choice([16, 24]),
        "kv_lora_rank": rng.choice([12, 20]),
        "qk_nope_head_dim": rng.choice([6, 12]),
        "qk_rope_head_dim": rope,
        "v_head_dim": rng.choice([8, 14]),
        "index_topk": rng.randint(2, 16),
        # Many heads: with few, whole rows of scores are exactly zero after the ReLU and tie.
        "index_n_heads": rng.choice([12, 16]),
        "index_head_dim": rope + rng.choice([0, 4, 8]),
        "first_k_dense_replace": rng.choice([1, 3]),
        "max_position_embeddings": 512,
        "rms_norm_eps": rng.choice([1e-5, 1e-6]),
        "rope_parameters": {"rope_type": "default", "rope_theta": rng.choice([1e4, 8e6])},
        "initializer_range": 1.3 / hidden**0.5,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }


def glm_case(seed: int) -> Case:
    """A random GLM-5.2-like configuration with an irregular sharing pattern."""
    rng = random.Random(seed)
    sizes = random_sizes(rng)
    rest = [rng.choice(["full", "shared"]) for _ in range(sizes["num_hidden_layers"] - 1)]
    sizes["indexer_types"] = ["full", *rest]
    return Case(seed, sizes, attention=rng.choice(["eager", "sdpa"]))


def deepseek_case(seed: int) -> Case:
    """A random DeepSeek-V3.2-like configuration; every other one has YaRN-scaled rotary embeddings."""
    rng = random.Random(1000 + seed)
    sizes = random_sizes(rng)
    if seed % 2:
        sizes["rope_parameters"] = {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": rng.choice([4.0, 40.0]),
            "original_max_position_embeddings": rng.choice([16, 64]),
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": rng.choice([1.0, 0.707]),
        }
    return Case(seed, sizes, model_type="deepseek_v32", attention=rng.choice(["eager", "sdpa"]))


_PUBLIC = {
    "glm_moe_dsa": ("GlmMoeDsaConfig", "GlmMoeDsaForCausalLM"),
    "deepseek_v32": ("DeepseekV32Config", "DeepseekV32ForCausalLM"),
}


@torch.no_grad()
def build_public(case: Case) -> Any:
    """The public model in float32 with every weight random: norms are not ones, biases are not zeros."""
    config_name, model_name = _PUBLIC[case.model_type]
    config = getattr(transformers, config_name)(**case.sizes)
    config._attn_implementation = case.attention
    torch.manual_seed(case.seed)
    model = getattr(transformers, model_name)(config).float().eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("norm.weight"):
            tensor.normal_(1.0, 0.3)
        elif name.endswith("norm.bias"):
            tensor.normal_(0.0, 0.4)
        elif name.endswith("e_score_correction_bias"):
            tensor.normal_(0.0, 0.2)
        elif name.endswith("gate.weight"):
            tensor.normal_(0.0, config.initializer_range)
    return model


def load_twin(public: Any, folder: Path, **options: Any) -> GlmMoeDsa:
    """What the public model saves, loaded by this package in float32."""
    public.save_pretrained(folder)
    options.setdefault("dtype", "float32")
    return load_model(folder, **options)


@dataclass
class Batch:
    """Token ids and mask [B, S] with padding on one side, and the real lengths."""

    ids: torch.Tensor
    mask: torch.Tensor
    lengths: list[int]
    positions: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.positions = (self.mask.cumsum(-1) - 1).clamp_min(0)


def random_batch(case: Case, attempt: int, side: str) -> Batch:
    """Three sequences of different odd lengths, far beyond the case's `index_topk`."""
    rng = random.Random(7919 * case.seed + attempt)
    lengths = sorted(rng.choice(range(31, 64, 2)) for _ in range(3))
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    ids = torch.randint(2, case.sizes["vocab_size"], (3, lengths[-1]), generator=generator)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, : length if side == "right" else None] = 1
        if side == "left":
            mask[row, : lengths[-1] - length] = 0
    return Batch(ids, mask, lengths)


@dataclass(frozen=True)
class Twins:
    """A public model and ours with the same weights."""

    case: Case
    public: Any
    ours: GlmMoeDsa


@functools.lru_cache(maxsize=64)
def twins(kind: str, seed: int) -> Twins:
    """The case `kind` ("glm" or "deepseek") number `seed`, built once per test run."""
    case = glm_case(seed) if kind == "glm" else deepseek_case(seed)
    public = build_public(case)
    with tempfile.TemporaryDirectory() as folder:
        return Twins(case, public, load_twin(public, Path(folder)))


def clear_batch(pair: Twins, side: str) -> tuple[Batch, torch.Tensor]:
    """A batch in which none of the public model's choices is a near-tie, and its logits [B, S, V] there."""
    for attempt in range(50):
        batch = random_batch(pair.case, attempt, side)
        with torch.no_grad(), TopkMargins(len(batch.ids)) as margins:
            output = pair.public(batch.ids, attention_mask=batch.mask, position_ids=batch.positions)
        if margins.smallest.min() > MIN_MARGIN:
            return batch, output.logits
    raise AssertionError(f"no batch without near-ties for {pair.case}")


@dataclass(frozen=True)
class Continuation:
    """A prompt int64 [P], the public model's greedy tokens after it, and their logits [tokens, V]."""

    prompt: torch.Tensor
    tokens: list[int]
    logits: torch.Tensor


@torch.no_grad()
def public_decode(pair: Twins, prompts: torch.Tensor, count: int) -> list[Continuation]:
    """Greedy tokens after equally long prompts [B, P], with the cache, where nothing nearly ties."""
    cache = transformers.DynamicCache(config=pair.public.config)
    rows, step_input = [], prompts
    with TopkMargins(len(prompts)) as margins:
        for _ in range(count):
            rows.append(pair.public(step_input, past_key_values=cache, use_cache=True).logits[:, -1])
            step_input = rows[-1].argmax(-1, keepdim=True)
    logits = torch.stack(rows, dim=1)
    best = logits.topk(2).values
    clear = (margins.smallest > MIN_MARGIN) & ((best[..., 0] - best[..., 1]).amin(-1) > 1e-3)
    tokens = logits.argmax(-1).tolist()
    return [Continuation(prompts[i], tokens[i], logits[i]) for i in clear.nonzero()[:, 0].tolist()]


@functools.lru_cache(maxsize=64)
def clear_continuations(kind: str, seed: int, count: int) -> list[Continuation]:
    """One continuation of `count` tokens for each of three prompt lengths."""
    pair = twins(kind, seed)
    generator = torch.Generator().manual_seed(seed)
    found: list[Continuation] = []
    for _ in range(40):
        length = (29, 35, 43)[len(found)]
        prompts = torch.randint(2, pair.case.sizes["vocab_size"], (8, length), generator=generator)
        found.extend(public_decode(pair, prompts, count)[:1])
        if len(found) == 3:
            return found
    raise AssertionError(f"no prompts without near-ties for {pair.case}")
