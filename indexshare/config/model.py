"""The model configuration: field names and meanings of the public `config.json`.

Reads and writes `glm_moe_dsa` (GLM-5, 5.1, 5.2) and `deepseek_v32` (DeepSeek-V3.2). Plain Python, no torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexshare.config.arguments import plain_integer
from indexshare.config.rope import RopeParameters
from indexshare.config.share_plan import SharePlan
from indexshare.config.variant import KEY as VARIANT
from indexshare.config.variant import Variant

ARCHITECTURES = {"glm_moe_dsa": "GlmMoeDsaForCausalLM", "deepseek_v32": "DeepseekV32ForCausalLM"}

# Where the two architectures' published defaults differ; everything else is a field default below.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "glm_moe_dsa": {"indexer_rope_interleave": True},
    "deepseek_v32": {
        "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
        "num_attention_heads": 128, "q_lora_rank": 1536, "v_head_dim": 128, "qk_nope_head_dim": 128, "n_group": 8,
        "topk_group": 4, "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "index_n_heads": 64,
        "indexer_rope_interleave": False,
    },
}  # fmt: skip

# Keys of public files that carry no information for us: kept as they are and written back.
_CARRIED = frozenset(
    [
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "auto_map",
        "chunk_size_feed_forward",
        "ep_size",
        "id2label",
        "is_encoder_decoder",
        "label2id",
        "moe_router_dtype",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "router_aux_loss_coef",
        "aux_loss_alpha",
        "seq_aux",
        "transformers_version",
        "use_cache",
        "torchscript",
        "use_bfloat16",
        "indexer_scale_fmt",
        "scale_fmt",
    ]
)
# Keys whose value follows from other fields and is derived on writing. `head_dim` is ignored on reading (GLM-5.2's is
# misleading), so is `first_k_dense_replace` beside `mlp_layer_types`: transformers writes its default there.
_DERIVED = frozenset(
    ["head_dim", "qk_head_dim", "num_key_value_heads", "layer_types", "num_experts", "num_local_experts"]
)
# Keys that may only have the value we implement.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",), "scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",), "moe_layer_freq": (1,),
    "rope_interleave": (True,), "mlp_bias": (False,),
}  # fmt: skip
_SPELLINGS = ("index_topk_pattern", "index_topk_freq", "index_skip_topk_offset")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and rules of one model; attribute names are the keys of the public `config.json`.

    `indexer_types` and `mlp_layer_types` are always present after construction (one entry per trunk layer).
    The draft (MTP) layer is counted by `num_nextn_predict_layers` (0 or 1); its layer index is `num_hidden_layers`.

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
        layers = self.num_hidden_layers
        if not self.indexer_types:
            object.__setattr__(self, "indexer_types", SharePlan.all_full(layers).types)
        if not self.mlp_layer_types:
            dense = min(3, layers)
            object.__setattr__(self, "mlp_layer_types", ("dense",) * dense + ("sparse",) * (layers - dense))
        self._check_sizes()
        self._check_relations()
        SharePlan.from_spellings(layers, indexer_types=self.indexer_types)
        self.variant.check(self)

    def _check_sizes(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            positive = item.type == "int" and item.name not in ("num_nextn_predict_layers", "n_shared_experts")
            number = plain_integer(value) if item.type == "int" else None
            if positive and (number is None or number < 1):
                raise ValueError(f"{item.name} is {value!r}; expected a positive integer")
            if number is not None:
                object.__setattr__(self, item.name, number)  # numpy's integers become Python's, which JSON can hold
            if item.type == "float" and not (isinstance(value, (int, float)) and value > 0):
                raise ValueError(f"{item.name} is {value!r}; expected a positive number")
            if item.type == "bool" and not isinstance(value, bool):
                raise ValueError(f"{item.name} is {value!r}; expected true or false")

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
        if isinstance(self.n_shared_experts, bool) or not isinstance(self.n_shared_experts, int):
            raise ValueError(f"n_shared_experts is {self.n_shared_experts!r}; expected an integer")
        if self.n_shared_experts < 0:
            raise ValueError(f"n_shared_experts is {self.n_shared_experts}; expected 0 or more")
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim is {self.qk_rope_head_dim}; rotary pairs need an even width")
        if self.index_head_dim < self.qk_rope_head_dim:
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
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"{file} does not exist; a model directory needs a config.json") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
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
        data = dict(data)
        _check_shapes(data)
        model_type = data.get("model_type")
        if model_type not in ARCHITECTURES:
            said = "missing" if model_type is None else repr(model_type)
            raise ValueError(f"model_type is {said}; this package implements {sorted(ARCHITECTURES)}")
        for key, allowed in _FIXED.items():
            if data.get(key, allowed[0]) not in allowed:
                raise ValueError(f"{key} is {data[key]!r}; this package implements {list(allowed)}")
        own = {f.name for f in dataclasses.fields(cls)} - {"extra", "variant"}
        values = dict(_DEFAULTS[model_type])
        values.update((key, value) for key, value in data.items() if key in own and value is not None)
        for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if key in data:
                values[key] = tuple(data[key]) if isinstance(data[key], list) else data[key]
        extra = {key: data[key] for key in _CARRIED if key in data}
        _refuse_unknown(data, own)
        values["dtype"] = data.get("dtype") or data.get("torch_dtype") or "bfloat16"
        _take_expert_count(data, values)
        values["rope_parameters"] = RopeParameters.from_public(data)
        values["variant"] = Variant.from_public(data.get(VARIANT, {}))
        layers = values.get("num_hidden_layers", cls.num_hidden_layers)
        plan = SharePlan.from_spellings(
            layers,
            indexer_types=data.get("indexer_types"),
            pattern=data.get("index_topk_pattern"),
            freq=data.get("index_topk_freq"),
            offset=data.get("index_skip_topk_offset"),
        )
        values["indexer_types"] = plan.types
        extra.update((key, data[key]) for key in _SPELLINGS if key in data)
        if data.get("mlp_layer_types") is None:
            dense = min(data.get("first_k_dense_replace", 3), layers)
            values["mlp_layer_types"] = ("dense",) * dense + ("sparse",) * (layers - dense)
        else:
            values["mlp_layer_types"] = tuple(data["mlp_layer_types"])
        config = cls(**values, extra=extra)
        if data.get("qk_head_dim") not in (None, config.qk_head_dim):
            raise ValueError(
                f"qk_head_dim is {data['qk_head_dim']}, but qk_nope_head_dim + qk_rope_head_dim is {config.qk_head_dim}"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """The public `config.json` form; every key that vLLM, SGLang and transformers look for is written."""
        data: dict[str, Any] = dict(self.extra)
        for item in dataclasses.fields(self):
            if item.name not in ("extra", "rope_parameters", "quantization_config", "variant"):
                value = getattr(self, item.name)
                data[item.name] = list(value) if isinstance(value, tuple) else value
        if self.extra and not self._spellings_agree():
            for key in _SPELLINGS:
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
            **{key: allowed[0] for key, allowed in _FIXED.items() if key != "mlp_bias"},
        )  # fmt: skip
        data.setdefault("moe_router_dtype", "float32")
        return dict(sorted(data.items()))

    def _spellings_agree(self) -> bool:
        """Whether the schedule keys carried from the file still describe `indexer_types`; a new plan may not match."""
        pattern, freq, offset = (self.extra.get(key) for key in _SPELLINGS)
        try:
            SharePlan.from_spellings(
                self.num_hidden_layers,
                indexer_types=self.indexer_types,
                pattern=pattern,
                freq=freq,
                offset=offset,
            )
        except ValueError:
            return False
        return True


def _check_shapes(data: dict[str, Any]) -> None:
    """Refuse lists, objects and words where the public file has something else, before anything is made of them."""
    lists = ("indexer_types", "mlp_layer_types", "layer_types", "architectures")
    objects = ("rope_parameters", "rope_scaling", "quantization_config")
    integers = ("index_topk_freq", "index_skip_topk_offset", "first_k_dense_replace", "num_experts", "qk_head_dim")
    for keys, kind, expected in (
        (lists, list, "a list"),
        (objects, dict, "an object"),
        (integers, int, "an integer"),
        (("model_type", "dtype", "torch_dtype"), str, "a string"),
        (("index_topk_pattern",), (str, list), "a string of F and S"),
    ):
        for key in keys:
            value = data.get(key)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise ValueError(f"{key} is {value!r}; expected {expected}")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = data.get(key) if isinstance(data.get(key), list) else [data.get(key)]
        for value in ids or ():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ValueError(f"{key} is {data[key]!r}; expected an id of 0 or more, or a list of them")


def _take_expert_count(data: dict[str, Any], values: dict[str, Any]) -> None:
    """`num_experts` and `num_local_experts` are other names of `n_routed_experts`; two that disagree are refused."""
    for key in ("num_experts", "num_local_experts"):
        if data.get(key) is not None:
            if data.get("n_routed_experts") not in (None, data[key]):
                raise ValueError(f"{key} is {data[key]}, but n_routed_experts is {data['n_routed_experts']}; keep one")
            values["n_routed_experts"] = data[key]


def _refuse_unknown(data: dict[str, Any], own: set[str]) -> None:
    known = own | _CARRIED | _DERIVED | set(_FIXED) | set(_SPELLINGS) | {"torch_dtype", "first_k_dense_replace"}
    known |= {"rope_theta", "rope_scaling", VARIANT}
    for key in sorted(set(data) - known):
        near = difflib.get_close_matches(key, sorted(known), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; remove it if it does not change the model"
        raise ValueError(f"unknown key {key!r} in the configuration{hint}")
