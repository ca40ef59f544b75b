"""One table of a model's tensors and of what its caches keep. Plain Python, no torch.

Checkpoint names, the planner, the optimizer's groups, packed and FP8 weights, exports and caches read it. A kind of
attention brings rows of its own (`AttentionTable`, registered with `register_attention`); all other rows are here.
Names are those of the model's parameters; shapes are `[out, in]`, as in `nn.Linear`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from indexshare.config.model import ModelConfig
from indexshare.config.variant import Kind, register_kind

INDEXER = "self_attn.indexer."
EXPERTS = "mlp.experts."
INDEX_KEYS = "index_keys"  # the indexer's stream, whatever the attention


class Role(Enum):
    """What a tensor does, which decides how it is stored and trained."""

    NORM = "norm"
    BIAS = "bias"
    MATRIX = "matrix"
    LATENT_UP = "latent up"  # per head rows for keys, then for values; absorbed attention uses the keys' transposed
    EXPERTS = "experts"  # a stack of matrices, [experts, out, in]
    ROUTER = "router"  # rounded scores choose other experts: kept precise
    ROUTER_BIAS = "router bias"  # a float32 buffer
    INDEX_WEIGHTS = "index weights"  # rounded head weights choose other tokens: kept precise
    DRAFT_INPUT = "draft input"
    EMBEDDING = "embedding"
    HEAD = "head"


_PRODUCTS = (Role.MATRIX, Role.LATENT_UP, Role.EXPERTS)


@dataclass(frozen=True, kw_only=True)
class LayerTensor:
    """One parameter (or the router's buffer).

    Attributes:
        name: in the model; in the table of a layer without the layer's prefix.
        shape: of the whole tensor.
        part: what it is counted under, a field of `planner.memory.ParameterCount`.
        role: what it does.
        heads: equal blocks of its rows, one for each head.
        split: rows of the parts of such a block (of the whole tensor without heads); one part if empty.
        residual: whether its product is added to the residual stream.
    """

    name: str
    shape: tuple[int, ...]
    part: str
    role: Role = Role.MATRIX
    heads: int = 1
    split: tuple[int, ...] = ()
    residual: bool = False

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def is_product(self) -> bool:
        """Whether it is one of the many large matrices that activations are multiplied with: FP8 converts them."""
        return self.role in _PRODUCTS

    @property
    def is_orthogonal(self) -> bool:
        """Whether Muon, which makes updates orthogonal, is made for it; indexers learn from another loss."""
        return (self.is_product and self.part != "indexer") or self.role is Role.DRAFT_INPUT


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Rows that one layer's cache keeps, one for each token.

    Attributes:
        name: how the model writes and reads them.
        width: values of a row.
        precise: how many of them, the last ones, a codec of few bits should keep in 16 bits (a rotary key).
    """

    name: str
    width: int
    precise: int = 0


class AttentionTable(ABC):
    """What a kind of attention brings to every layer; its settings are `config.variant.attention`."""

    @abstractmethod
    def tensors(self, config: ModelConfig) -> tuple[LayerTensor, ...]:
        """Its parameters under `self_attn.`, without the indexer's."""

    @abstractmethod
    def streams(self, config: ModelConfig) -> tuple[Stream, ...]:
        """What it keeps of every token."""

    @abstractmethod
    def index_inputs(self, config: ModelConfig) -> int:
        """Width of the activations from which the indexer makes its queries."""

    @abstractmethod
    def pair_products(self, config: ModelConfig, *, absorbed: bool) -> int:
        """Multiplications per pair of a query and a key, over the stored rows (absorbed) or expanded ones."""

    @abstractmethod
    def row_values(self, config: ModelConfig) -> int:
        """Values that one new token takes for a while: queries, what they attended."""

    @abstractmethod
    def key_values(self, config: ModelConfig) -> int:
        """Values that one key takes for a while where the first tokens are attended to in full."""

    def kept_values(self, config: ModelConfig) -> int:
        """Values that one token leaves for the backward pass of training, its input apart."""
        return self.row_values(config)


_TABLES: dict[type[Kind], AttentionTable] = {}


def register_attention(settings: type[Kind], table: AttentionTable) -> None:
    """Add a kind of attention: its settings for config.json, and its rows."""
    register_kind("attention", settings)
    _TABLES[settings] = table


def attention_table(config: ModelConfig) -> AttentionTable:
    """The rows of a model's attention."""
    return _TABLES[type(config.variant.attention)]


def has_indexer(config: ModelConfig, layer: int) -> bool:
    """Whether a layer chooses for itself: Full layers and the draft layer, index `num_hidden_layers`."""
    return config.selects and (layer == config.num_hidden_layers or config.share_plan.is_full(layer))


def indexer_layers(config: ModelConfig) -> tuple[int, ...]:
    """Trunk layers that choose for themselves: none where every token is attended to."""
    return config.share_plan.full_layers if config.selects else ()


def layer_streams(config: ModelConfig, layer: int) -> tuple[Stream, ...]:
    """What the cache of `layer` (the draft layer is `num_hidden_layers`) keeps of every token."""
    own = attention_table(config).streams(config)
    index = (Stream(name=INDEX_KEYS, width=config.index_head_dim),) if has_indexer(config, layer) else ()
    return own + index


def indexer_tensors(config: ModelConfig) -> tuple[LayerTensor, ...]:
    """The indexer of a Full layer."""
    hidden, heads, width = config.hidden_size, config.index_n_heads, config.index_head_dim
    queries = (heads * width, attention_table(config).index_inputs(config))
    rows = (
        LayerTensor(name="wq_b.weight", shape=queries, part="indexer", heads=heads),
        LayerTensor(name="wk.weight", shape=(width, hidden), part="indexer"),
        LayerTensor(name="k_norm.weight", shape=(width,), part="indexer", role=Role.NORM),
        LayerTensor(name="k_norm.bias", shape=(width,), part="indexer", role=Role.BIAS),
        LayerTensor(name="weights_proj.weight", shape=(heads, hidden), part="indexer", role=Role.INDEX_WEIGHTS),
    )
    return tuple(replace(row, name=INDEXER + row.name) for row in rows)


def expert_stacks(config: ModelConfig) -> tuple[LayerTensor, ...]:
    """The routed experts of a layer that has them, as two stacks."""
    count, hidden, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
    return (
        LayerTensor(
            name=f"{EXPERTS}gate_up_proj", shape=(count, 2 * inner, hidden), part="experts", role=Role.EXPERTS,
            split=(inner, inner),
        ),
        LayerTensor(
            name=f"{EXPERTS}down_proj", shape=(count, hidden, inner), part="experts", role=Role.EXPERTS, residual=True
        ),
    )  # fmt: skip


def layer_tensors(config: ModelConfig, layer: int) -> Iterator[LayerTensor]:
    """Everything in a decoder layer (the draft layer's is `num_hidden_layers`), names without its prefix."""
    hidden = config.hidden_size
    yield _norm("input_layernorm.weight", hidden)
    yield from attention_table(config).tensors(config)
    if has_indexer(config, layer):
        yield from indexer_tensors(config)
    yield _norm("post_attention_layernorm.weight", hidden)
    if not config.is_moe(layer):
        yield from _swiglu("mlp", hidden, config.intermediate_size, "dense_mlp")
        return
    experts = config.n_routed_experts
    yield LayerTensor(name="mlp.gate.weight", shape=(experts, hidden), part="router", role=Role.ROUTER)
    yield LayerTensor(name="mlp.gate.e_score_correction_bias", shape=(experts,), part="router", role=Role.ROUTER_BIAS)
    if config.n_shared_experts:
        shared = config.moe_intermediate_size * config.n_shared_experts
        yield from _swiglu("mlp.shared_experts", hidden, shared, "shared_experts")
    yield from expert_stacks(config)


def _norm(name: str, width: int) -> LayerTensor:
    return LayerTensor(name=name, shape=(width,), part="norms", role=Role.NORM)


def _swiglu(prefix: str, hidden: int, inner: int, part: str) -> Iterator[LayerTensor]:
    yield LayerTensor(name=f"{prefix}.gate_proj.weight", shape=(inner, hidden), part=part)
    yield LayerTensor(name=f"{prefix}.up_proj.weight", shape=(inner, hidden), part=part)
    yield LayerTensor(name=f"{prefix}.down_proj.weight", shape=(hidden, inner), part=part, residual=True)


def draft_tensors(config: ModelConfig) -> tuple[LayerTensor, ...]:
    """What the draft layer has around its decoder layer, names without `mtp.`."""
    hidden = config.hidden_size
    joined = LayerTensor(name="eh_proj.weight", shape=(hidden, 2 * hidden), part="draft", role=Role.DRAFT_INPUT)
    return (
        _norm("enorm.weight", hidden),
        _norm("hnorm.weight", hidden),
        joined,
        _norm("shared_head_norm.weight", hidden),
    )


def layer_prefix(config: ModelConfig, layer: int) -> str:
    """Prefix of a decoder layer's parameters in the model."""
    return "mtp.layer." if layer == config.num_hidden_layers else f"layers.{layer}."


def outer_tensors(config: ModelConfig) -> tuple[tuple[LayerTensor, ...], tuple[LayerTensor, ...]]:
    """What stands before the layers and after them; a tied model has no head of its own."""
    vocabulary = (config.vocab_size, config.hidden_size)
    embedding = LayerTensor(name="embed_tokens.weight", shape=vocabulary, part="embedding", role=Role.EMBEDDING)
    norm = _norm("norm.weight", config.hidden_size)
    if config.tie_word_embeddings:
        return (embedding,), (norm,)
    return (embedding,), (norm, LayerTensor(name="lm_head.weight", shape=vocabulary, part="head", role=Role.HEAD))


def model_tensors(config: ModelConfig) -> Iterator[LayerTensor]:
    """Every tensor of a model under its full name, in the order of the layers."""
    before, after = outer_tensors(config)
    yield from before
    for layer in range(config.num_layers_with_draft):
        if layer == config.num_hidden_layers:
            yield from (replace(row, name=f"mtp.{row.name}") for row in draft_tensors(config))
        prefix = layer_prefix(config, layer)
        yield from (replace(row, name=prefix + row.name) for row in layer_tensors(config, layer))
    yield from after
