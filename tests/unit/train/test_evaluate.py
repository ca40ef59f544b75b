"""Held-out bits per byte: exact for a model that is known, the same for any workers, and without gradients."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from indexshare.data.corpus import TokenCorpus
from indexshare.data.splitting import Document
from indexshare.model.glm import GlmMoeDsa
from indexshare.train import evaluate
from indexshare.train.evaluate import bits_by_file, held_out_bits_per_byte
from indexshare.train.recipe import PreparedData, Recipe, prepare
from indexshare.train.workers import Workers
from tests.tolerance import TOL

RELATIVE = TOL["held-out bits", "float32"].rtol


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def data(make_recipe: Callable[..., Recipe], folder: Path) -> PreparedData:
    return prepare(make_recipe(), folder)


@pytest.fixture
def model(make_recipe: Callable[..., Recipe]) -> GlmMoeDsa:
    return GlmMoeDsa(make_recipe().model).initialise(0)


def _score(model: GlmMoeDsa, corpus: TokenCorpus, **changes: Any) -> float:
    settings: dict[str, Any] = {"length": 24, "windows": 7, "full_attention": False}
    return held_out_bits_per_byte(model, corpus, **(settings | changes))


def test_a_uniform_model_costs_the_logarithm_of_its_vocabulary(model: GlmMoeDsa, data: PreparedData) -> None:
    with torch.no_grad():
        model.lm_head.weight.zero_()
    bits_per_token = math.log2(model.config.vocab_size)
    corpus = data.held_out
    assert _score(model, corpus) == pytest.approx(bits_per_token * len(corpus) / corpus.num_bytes, rel=RELATIVE)
    document = data.documents[0]
    ((size, bits),) = bits_by_file(model, data.tokenizer, data.documents[:1], max_tokens=50)
    assert size == len(document.text.encode())
    tokens = len(data.tokenizer.encode(document.text, parse_special=False))
    assert bits == pytest.approx(bits_per_token * tokens, rel=RELATIVE)


def test_workers_change_nothing(model: GlmMoeDsa, data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two windows; no graph is built in any thread."""
    monkeypatch.setattr(evaluate, "_ROWS_AT_ONCE", 48)
    loss, sizes = evaluate.next_token_loss, []

    def watched(hidden: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        assert not hidden.requires_grad and not torch.is_grad_enabled()
        sizes.append(len(hidden))
        return loss(hidden, *arguments, **settings)

    monkeypatch.setattr(evaluate, "next_token_loss", watched)
    one = _score(model, data.held_out)
    assert sizes == [48, 48, 48, 24]
    for count in (2, 3):
        assert _score(model, data.held_out, workers=Workers(count)) == pytest.approx(one, rel=RELATIVE)
    assert _score(model, data.held_out, windows=3) != one
    assert torch.is_grad_enabled()


def test_attention_is_as_asked_for(model: GlmMoeDsa, data: PreparedData) -> None:
    assert _score(model, data.held_out, full_attention=True) != _score(model, data.held_out)


def test_a_context_shorter_than_the_file_line_is_refused(model: GlmMoeDsa, data: PreparedData) -> None:
    """It would score nothing and report zero bits."""
    long = Document(name="a/very/long/folder/of/a/module/that/takes/all/there/is.py", text="x = 1\n")
    with pytest.raises(ValueError, match=r"max_tokens is 8, the file line of 'a/very/.*give a longer context"):
        bits_by_file(model, data.tokenizer, [long], max_tokens=8)
