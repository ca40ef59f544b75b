"""Variants of the model: one key of config.json, read strictly, absent from a public model's file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from indexshare.config import PRESETS, ModelConfig, preset, variant
from indexshare.config.variant import Kind, Variant, register_kind
from indexshare.export.llama_cpp import architecture


@dataclass(frozen=True)
class Windowed(Kind):
    """Made up: a window of recent tokens beside those chosen by content."""

    kind: ClassVar[str] = "windowed"

    window: int
    share: float = 0.5

    def check(self, config: ModelConfig) -> None:
        if self.window > config.index_topk:
            raise ValueError(f"window is {self.window}, above index_topk {config.index_topk}")


@pytest.fixture(autouse=True)
def windowed() -> Iterator[None]:
    register_kind("selection", Windowed)
    yield
    del variant._KINDS["selection"]["windowed"]


def with_key(**parts: Any) -> dict[str, Any]:
    return preset("tiny").to_dict() | {"indexshare": parts}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_public_models_have_no_such_key(name: str) -> None:
    config = preset(name)
    assert config.variant.is_public
    assert "indexshare" not in config.to_dict()
    spelled = {"attention": {"kind": "mla"}, "selection": {"kind": "content"}}
    assert ModelConfig.from_dict(config.to_dict() | {"indexshare": spelled}).to_dict() == config.to_dict()


def test_a_made_up_selection_round_trips() -> None:
    config = ModelConfig.from_dict(with_key(selection={"kind": "windowed", "window": 4}))
    assert config.variant == Variant(selection=Windowed(4))
    assert config != preset("tiny")
    assert config.to_dict()["indexshare"] == {"selection": {"kind": "windowed", "window": 4, "share": 0.5}}
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert config.replace(dtype="float32").variant == config.variant


def test_what_cannot_express_it_refuses_by_name() -> None:
    config = ModelConfig.from_dict(with_key(selection={"kind": "windowed", "window": 4}))
    with pytest.raises(ValueError, match=r"llama.cpp cannot run this model: .*selection is of the kind 'windowed'"):
        architecture(config)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"atention": {}}, "unknown key 'atention' in 'indexshare'; did you mean 'attention'"),
        ({"attention": {"kind": "mlaa"}}, "the kind of 'attention' in 'indexshare' is 'mlaa'; did you mean 'mla'"),
        ({"attention": {}}, "the kind of 'attention' in 'indexshare' is missing; expected one of gqa, mla"),
        ({"attention": "mla"}, "'attention' in 'indexshare' is 'mla'; expected a JSON object"),
        ({"attention": {"kind": "mla", "heads": 2}}, "unknown key 'heads' in attention 'mla'; it has no settings"),
        ({"selection": {"kind": ["content"]}}, r"is \['content'\]"),
        ({"selection": {"kind": "windowed"}}, "selection 'windowed' in 'indexshare' lacks window"),
        (
            {"selection": {"kind": "windowed", "windo": 3}},
            "unknown key 'windo' in selection 'windowed'; did you mean 'window'",
        ),
        (
            {"selection": {"kind": "windowed", "window": True}},
            "'windowed': window is True; expected a whole number",
        ),
        ({"selection": {"kind": "windowed", "window": 3, "share": "x"}}, "'windowed': share is 'x'; expected a number"),
        ({"selection": {"kind": "windowed", "window": 9}}, "window is 9, above index_topk 8"),
    ],
)
def test_bad_values_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(with_key(**parts))


@pytest.mark.parametrize("value", [None, [], "mla", 3])
def test_the_key_is_an_object(value: Any) -> None:
    with pytest.raises(ValueError, match=r"indexshare is .*; expected a JSON object"):
        ModelConfig.from_dict(preset("tiny").to_dict() | {"indexshare": value})


def test_a_misspelt_key_is_refused() -> None:
    for key in ("index_share", "variant"):
        with pytest.raises(ValueError, match=f"unknown key '{key}' in the configuration"):
            ModelConfig.from_dict(preset("tiny").to_dict() | {key: {}})
