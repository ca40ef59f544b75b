"""Variants of the model: the parts that may be exchanged, each a kind with settings of its own.

They are written in one key of config.json, `"indexshare": {"attention": {"kind": "mla"}, ...}`. A part of the public
architecture is left out, so that a public model's file has no such key. A kind is a frozen dataclass of settings,
registered for its part (`register_kind`; attention with `config.layers.register_attention`, which also takes its
tensors and cache streams). Its mathematics is in `model/`.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, ClassVar

from indexshare.config.arguments import shown
from indexshare.config.fields import check_fields

KEY = "indexshare"  # in config.json


@dataclass(frozen=True)
class Kind:
    """One kind of a part. Subclasses are frozen dataclasses whose fields are the kind's settings.

    Raises:
        ValueError: a setting is of another type.
    """

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_fields(self, f"{self.kind!r}: ")

    def check(self, config: Any) -> None:
        """Raise ValueError where the settings do not fit the sizes of a `ModelConfig`."""

    def to_public(self) -> dict[str, Any]:
        """The form in config.json."""
        settings = dataclasses.asdict(self)
        return {"kind": self.kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}


@dataclass(frozen=True)
class LatentAttention(Kind):
    """The public models' attention; its sizes are keys of config.json itself."""

    kind: ClassVar[str] = "mla"


@dataclass(frozen=True, kw_only=True)
class GroupedAttention(Kind):
    """Query heads that share heads of keys and values (arXiv 2305.13245); as many of both is multi-head attention.

    The first `qk_rope_head_dim` values of a head turn, in pairs of halves.

    Attributes:
        kv_heads: heads of keys and of values; each serves as many query heads, which lie together.
        head_dim: width of a head.
        qk_norm: whether each head's queries and keys are normalised before they turn.
        qkv_bias, output_bias: whether the projections have biases.
        no_rope_layers: layers in which nothing turns.
    """

    kind: ClassVar[str] = "gqa"

    kv_heads: int
    head_dim: int
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    no_rope_layers: tuple[int, ...] = ()

    def check(self, config: Any) -> None:
        """Heads that divide evenly, a rotary part within a head, layers that exist."""
        heads, rotary, layers = config.num_attention_heads, config.qk_rope_head_dim, config.num_hidden_layers
        if self.kv_heads < 1 or heads % self.kv_heads:
            raise ValueError(f"num_attention_heads is {heads}, which {self.kv_heads} key/value heads do not divide")
        if self.head_dim < rotary:
            raise ValueError(f"head_dim is {self.head_dim}; it must hold {rotary} rotary values")
        for layer in self.no_rope_layers:
            if not 0 <= layer < layers:
                raise ValueError(f"no_rope_layers has layer {layer}; the model has layers 0 to {layers - 1}")


@dataclass(frozen=True)
class Everything(Kind):
    """No selection: every token is attended to, and no layer has an indexer."""

    kind: ClassVar[str] = "everything"

    def check(self, config: Any) -> None:
        """Attention without latents, no draft layer, and no layer that would reuse a selection."""
        if isinstance(config.variant.attention, LatentAttention):
            raise ValueError("a selection of the kind 'everything' needs attention of another kind than 'mla'")
        if config.num_nextn_predict_layers:
            raise ValueError("num_nextn_predict_layers is 1; a model that attends to everything has no draft layer")
        if "shared" in config.indexer_types:
            raise ValueError("indexer_types has Shared layers; a model that attends to everything selects nothing")


@dataclass(frozen=True)
class ContentSelection(Kind):
    """The public models' selection: the `index_topk` keys with the best scores of the indexer."""

    kind: ClassVar[str] = "content"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a model is made of.

    Attributes:
        attention: what attends.
        selection: what chooses the tokens that are attended to.
    """

    attention: Kind = LatentAttention()
    selection: Kind = ContentSelection()

    @classmethod
    def from_public(cls, data: Any) -> Variant:
        """From the value of config.json's key.

        Raises:
            ValueError: an unknown part, kind or setting (the nearest is named), or a value of the wrong type.
        """
        parts = [item.name for item in dataclasses.fields(cls)]
        chosen = {}
        for part, settings in _an_object(data, KEY).items():
            if part not in parts:
                raise ValueError(f"unknown key {shown(part)} in {KEY!r}{_nearest(part, parts)}")
            chosen[part] = _kind(part, _an_object(settings, f"{part!r} in {KEY!r}"))
        return cls(**chosen)

    def to_public(self) -> dict[str, Any]:
        """The value of config.json's key; parts of the public architecture are left out."""
        plain = Variant()
        parts = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {name: kind.to_public() for name, kind in parts.items() if kind != getattr(plain, name)}

    def check(self, config: Any) -> None:
        """Raise ValueError where a part does not fit the sizes of a `ModelConfig`."""
        for item in dataclasses.fields(self):
            getattr(self, item.name).check(config)

    @property
    def is_public(self) -> bool:
        """Whether it is the public architecture."""
        return self == Variant()

    @property
    def selects(self) -> bool:
        """Whether layers choose what is attended to."""
        return not isinstance(self.selection, Everything)

    def differences(self) -> list[str]:
        """What is not as in the public architecture, for those that can express nothing else to refuse by name."""
        return [f"{part} is of the kind {kind['kind']!r}" for part, kind in self.to_public().items()]


_KINDS: dict[str, dict[str, type[Kind]]] = {"attention": {}, "selection": {}}


def register_kind(part: str, kind: type[Kind]) -> None:
    """Add a kind of a part (a field of `Variant`); a later one of the same name replaces it."""
    _KINDS[part][kind.kind] = kind


def _kind(part: str, settings: dict[str, Any]) -> Kind:
    settings, known = dict(settings), _KINDS[part]
    name = settings.pop("kind", None)
    if not isinstance(name, str) or name not in known:
        said = "missing" if name is None else shown(name)
        raise ValueError(f"the kind of {part!r} in {KEY!r} is {said}{_nearest(str(name), list(known))}")
    fields = {item.name: item for item in dataclasses.fields(known[name])}
    for key in settings:
        if key not in fields:
            raise ValueError(f"unknown key {shown(key)} in {part} {name!r}{_nearest(key, [*fields])}")
    lacking = [key for key, item in fields.items() if key not in settings and item.default is dataclasses.MISSING]
    if lacking:
        raise ValueError(f"{part} {name!r} in {KEY!r} lacks {', '.join(lacking)}")
    return known[name](**settings)


def _an_object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {shown(value)}; expected a JSON object")
    return value


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{hint}; expected one of {', '.join(known)}" if known else f"{hint}; it has no settings"


register_kind("selection", ContentSelection)
register_kind("selection", Everything)
