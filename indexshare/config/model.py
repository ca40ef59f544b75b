"""The model configuration: field names and meanings of the public `config.json`.

Reads and writes `glm_moe_dsa` (GLM-5, 5.1, 5.2), `deepseek_v32` (DeepSeek-V3.2), and the dense models of
`families.py`. Plain Python, no torch.
"""

from __future__ import annotations

import dataclasses
import json
import numbers
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexshare.config import families, retrofitted
from indexshare.config.arguments import plain_integer, shown
from indexshare.config.fields import check_fields
from indexshare.config.public import (
    ARCHITECTURES,
    DTYPE_MISSING,
    FIXED,
    LARGEST,
    MAX_LAYERS,
    SCHEDULE,
    from_public,
    schedule,
)
from indexshare.config.rope import RopeParameters
from indexshare.config.share_plan import SharePlan
from indexshare.config.variant import KEY as VARIANT
from indexshare.config.variant import Variant

DTYPES = ("float64", "float32", "bfloat16", "float16")
LARGEST_FLOAT = 1e38
MAX_EXPERTS = 2**18  # of all layers: more than ten times those of the largest public model
_MAY_BE_ZERO = ("num_nextn_predict_layers", "n_shared_experts")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and rules of one model; attribute names are the keys of the public `config.json`.

    `indexer_types` and `mlp_layer_types` are always present after construction (one entry per trunk layer).
    Where every token is attended to, `index_topk` is the context. The draft (MTP) layer is counted by
    `num_nextn_predict_layers` (0 or 1); its layer index is `num_hidden_layers`.

    Raises:
        ValueError: a size is not positive, lists have the wrong length, or values contradict one another.
    """

    model_type: str = "glm_moe_dsa"
    vocab_size: int = 154880
    hidden_size: int = 6144
    intermediate_size: int = 12288
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 78
    num_attention_heads: int = 64
    n_shared_experts: int = 1
    n_routed_experts: int = 256
    num_experts_per_tok: int = 8
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    q_lora_rank: int = 2048
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 192
    qk_rope_head_dim: int = 64
    v_head_dim: int = 256
    index_n_heads: int = 32
    index_head_dim: int = 128
    index_topk: int = 2048
    indexer_types: tuple[str, ...] = ()
    indexer_rope_interleave: bool = True
    index_share_for_mtp_iteration: bool = True
    mlp_layer_types: tuple[str, ...] = ()
    num_nextn_predict_layers: int = 0
    max_position_embeddings: int = 202752
    rope_parameters: RopeParameters = field(default_factory=RopeParameters)
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 1
    pad_token_id: int | None = None
    dtype: str = "bfloat16"
    quantization_config: dict[str, Any] | None = None
    variant: Variant = field(default_factory=Variant)
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.model_type not in ARCHITECTURES:
            raise ValueError(f"model_type is {self.model_type!r}; this package implements {sorted(ARCHITECTURES)}")
        self._check_sizes()
        layers = self.num_hidden_layers
        if not self.selects:
            object.__setattr__(self, "index_topk", self.max_position_embeddings)
        if not self.indexer_types:
            object.__setattr__(self, "indexer_types", SharePlan.all_full(layers).types)
        if not self.mlp_layer_types:
            dense = min(3, layers)
            object.__setattr__(self, "mlp_layer_types", ("dense",) * dense + ("sparse",) * (layers - dense))
        check_fields(self)
        self._check_relations()
        SharePlan.from_spellings(layers, indexer_types=self.indexer_types)
        self.variant.check(self)
        families.check(self)

    def _check_sizes(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.type == "int":
                least, what = (0, "an integer of 0 or more") if item.name in _MAY_BE_ZERO else (1, "a positive integer")
                number = plain_integer(value)
                if number is None or not least <= number <= LARGEST:
                    raise ValueError(f"{item.name} is {shown(value)}; expected {what}, at most {LARGEST}")
                object.__setattr__(self, item.name, number)  # numpy's integers become Python's, which JSON can hold
            if item.type == "float" and not _is_positive(value):
                raise ValueError(f"{item.name} is {shown(value)}; expected a positive number")
            if item.type == "bool" and not isinstance(value, bool):
                raise ValueError(f"{item.name} is {shown(value)}; expected true or false")
        if self.num_hidden_layers > MAX_LAYERS:
            raise ValueError(f"num_hidden_layers is {self.num_hidden_layers}; expected at most {MAX_LAYERS}")
        if self.n_routed_experts * self.num_hidden_layers > MAX_EXPERTS:
            raise ValueError(
                f"n_routed_experts is {self.n_routed_experts} in each of {self.num_hidden_layers} layers; "
                f"expected at most {MAX_EXPERTS} in all"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {shown(self.dtype)}; expected one of {', '.join(DTYPES)}")

    def _check_relations(self) -> None:
        unknown = set(self.mlp_layer_types) - {"dense", "sparse"}
        if len(self.mlp_layer_types) != self.num_hidden_layers or unknown:
            raise ValueError(
                f"mlp_layer_types has {len(self.mlp_layer_types)} entries of {sorted(set(self.mlp_layer_types))}; "
                f"expected {self.num_hidden_layers} of 'dense' or 'sparse'"
            )
        if self.num_nextn_predict_layers not in (0, 1):
            raise ValueError(
                f"num_nextn_predict_layers is {self.num_nextn_predict_layers!r}; "
                "expected 0 or 1 (one draft layer, run for several steps)"
            )
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim is {self.qk_rope_head_dim}; rotary pairs need an even width")
        if self.selects and self.index_head_dim < self.qk_rope_head_dim:
            raise ValueError(
                f"index_head_dim is {self.index_head_dim}; it must hold {self.qk_rope_head_dim} rotary values"
            )
        if self.n_routed_experts % self.n_group:
            raise ValueError(
                f"n_routed_experts {self.n_routed_experts} does not divide into n_group {self.n_group} groups"
            )
        if self.n_group > 1 and self.n_routed_experts // self.n_group < 2:
            raise ValueError(
                f"n_group {self.n_group} leaves one expert a group, but groups are scored by their best two"
            )
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group is {self.topk_group}, above n_group {self.n_group}")
        reachable = self.n_routed_experts // self.n_group * self.topk_group
        if self.num_experts_per_tok > reachable:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, but only {reachable} experts can be chosen"
            )

    @property
    def share_plan(self) -> SharePlan:
        """Which layers run the indexer."""
        return SharePlan(self.indexer_types)

    @property
    def selects(self) -> bool:
        """Whether layers choose what is attended to; if not, there are no indexers."""
        return self.variant.selects

    @property
    def qk_head_dim(self) -> int:
        """Width of one query/key head: no-position part plus rotary part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Width of one cached latent row: `kv_lora_rank` values, then `qk_rope_head_dim` rotary key values."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def num_layers_with_draft(self) -> int:
        """Decoder layers in the checkpoint, the draft layer included."""
        return self.num_hidden_layers + self.num_nextn_predict_layers

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All ids that end a text, as a tuple (possibly empty)."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)

    @property
    def dtype_is_stated(self) -> bool:
        """Whether the file that this was read from says in which type its weights are."""
        return DTYPE_MISSING not in self.extra

    @property
    def has_experts(self) -> bool:
        """Whether any layer has experts."""
        return "sparse" in self.mlp_layer_types or self.num_nextn_predict_layers > 0

    def is_moe(self, layer: int) -> bool:
        """Whether `layer` has experts; the draft layer always has."""
        return layer >= self.num_hidden_layers or self.mlp_layer_types[layer] == "sparse"

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def load(cls, path: str | Path) -> ModelConfig:
        """Read `config.json` from a file or from the model directory that holds it."""
        file = Path(path)
        if file.is_dir():
            file = file / "config.json"
        if file.exists() and not file.is_file():
            raise ValueError(f"{file} is not a regular file; give a config.json, or the model directory that holds it")
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"{file} does not exist; a model directory needs a config.json") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not valid JSON: {error}") from None
        if not isinstance(data, dict):
            raise ValueError(f"{file} holds a {type(data).__name__}; expected a JSON object")
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """Configuration from the keys of a public `config.json`.

        Raises:
            ValueError: another architecture, an unknown key (the nearest known one is named), or a bad value.
        """
        if retrofitted.is_one(data):
            return cls(**retrofitted.from_public(data))
        if families.is_one(data):
            return cls(**families.from_public(data))
        keys = [item for item in dataclasses.fields(cls) if item.name not in ("extra", "variant")]
        return cls(**from_public(data, {item.name: item.default for item in keys}))

    def to_dict(self) -> dict[str, Any]:
        """The public `config.json` form; every key that vLLM, SGLang and transformers look for is written."""
        if self.model_type in families.FAMILIES:
            return retrofitted.to_public(self) if self.selects else families.to_public(self)
        data: dict[str, Any] = {key: value for key, value in self.extra.items() if key != DTYPE_MISSING}
        for item in dataclasses.fields(self):
            if item.name not in ("extra", "rope_parameters", "quantization_config", "variant"):
                value = getattr(self, item.name)
                data[item.name] = list(value) if isinstance(value, tuple) else value
        if self.extra and not self._spellings_agree():
            for key in SCHEDULE:
                data.pop(key, None)
        if self.quantization_config is not None:
            data["quantization_config"] = self.quantization_config
        if not self.variant.is_public:
            data[VARIANT] = self.variant.to_public()
        data.update(
            architectures=[ARCHITECTURES[self.model_type]],
            rope_parameters=self.rope_parameters.to_public(),
            num_key_value_heads=self.num_attention_heads,
            qk_head_dim=self.qk_head_dim,
            head_dim=self.qk_rope_head_dim,
            first_k_dense_replace=(*self.mlp_layer_types, "sparse").index("sparse"),
            mlp_bias=False,
            **{key: allowed[0] for key, allowed in FIXED.items() if key != "mlp_bias"},
        )  # fmt: skip
        data.setdefault("moe_router_dtype", "float32")
        return dict(sorted(data.items()))

    def _spellings_agree(self) -> bool:
        """Whether the schedule keys carried from the file still describe `indexer_types`; a new plan may not match."""
        try:
            schedule(self.num_hidden_layers, self.indexer_types, self.extra)
        except ValueError:
            return False
        return True


def _is_positive(value: Any) -> bool:
    """A number above zero that float32 holds."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return number and bool(0 < value <= LARGEST_FLOAT)
