"""Prices: the same text at every length, exact bits, and which model the price of sharing is taken against."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from indexshare.checkpoint.load import load_model, save_model
from indexshare.config import SharePlan, preset
from indexshare.data.splitting import Document
from indexshare.eval.forward import FULL, RECENT, SELECTION, token_bits
from indexshare.eval.prices import evaluate_prices, lay_out, load_every_layer_full, usable_lengths
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe
from tests.tolerance import TOL
from tests.unit.eval.fakes import FakeModel

TEXTS = [f"def f{i}(x):\n    return x * {i} + {i * 7}\n" * (i + 3) for i in range(12)]
DOCUMENTS = [Document(name=f"m{i}.py", text=text) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(iter(TEXTS), 300, SPECIAL_TOKENS)


def random_model(tokenizer: Tokenizer, pattern: str = "FFFSSS") -> GlmMoeDsa:
    types = SharePlan.from_pattern(pattern).types
    config = preset("tiny").replace(vocab_size=tokenizer.vocab_size, indexer_types=types, dtype="float32")
    return GlmMoeDsa(config).initialise(0).eval()


def test_a_silent_model_pays_nothing(tokenizer: Tokenizer) -> None:
    model = FakeModel(tokenizer)
    report = evaluate_prices(model, tokenizer, DOCUMENTS, lengths=[256, 100], every_layer_full=None, max_tokens=600)
    assert [row.length for row in report.rows] == [100, 256]
    for row in report.rows:
        expected = report.tokens * math.log2(tokenizer.vocab_size) / report.num_bytes
        assert row.selection.value == pytest.approx(expected, rel=TOL["held-out bits", "float32"].rtol)
        assert row.price_of_sparsity.value == 0 and row.price_of_sparsity.interval == (0, 0)
        assert row.every_layer_full is None and row.price_of_sharing is None
    assert report.tokens < 2 * 256


def test_bits_are_those_of_the_windows(tokenizer: Tokenizer) -> None:
    """The whole text in two windows, computed by hand from the model's own logits."""
    model, other = random_model(tokenizer), random_model(tokenizer, "FFFFFF")
    row = lay_out(DOCUMENTS, tokenizer)
    assert bytes(tokenizer.decode_bytes(row.ids[row.owner == 5].tolist())) == TEXTS[5].encode()
    assert int(row.num_bytes[row.owner >= 0].sum()) == sum(map(len, TEXTS))
    length = (len(row.ids) - 1) // 2
    report = evaluate_prices(model, tokenizer, DOCUMENTS, lengths=[length], every_layer_full=other, max_tokens=10**6)
    for figure, used in ((report.rows[0].selection, model), (report.rows[0].every_layer_full, other)):
        bits = 0.0
        for start in (0, length):
            ids = torch.tensor(row.ids[start : start + length + 1])
            with torch.no_grad():
                logits = used(ids[None, :-1])[0].log_softmax(-1) / -math.log(2)
            counted = torch.from_numpy(row.owner[start + 1 : start + length + 1] >= 0)
            bits += float(logits[torch.arange(length), ids[1:]][counted].double().sum())
        assert figure is not None
        assert figure.value == pytest.approx(bits / report.num_bytes, rel=TOL["held-out bits", "float32"].rtol)
    (row_,) = report.rows
    assert row_.price_of_sparsity.value == pytest.approx(row_.selection.value / row_.full.value - 1)
    assert row_.every_layer_full is not None and row_.price_of_sharing is not None
    assert row_.price_of_sharing.value == pytest.approx(row_.selection.value / row_.every_layer_full.value - 1)


def test_kinds_of_attention_agree_where_nothing_is_left_out(tokenizer: Tokenizer) -> None:
    model, ids = random_model(tokenizer), lay_out(DOCUMENTS, tokenizer).ids.tolist()
    short, long = ids[: model.config.index_topk], ids[:60]
    same = [token_bits(model, [short], kind)[0] for kind in (SELECTION, FULL, RECENT)]
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])
    different = [token_bits(model, [long], kind)[0] for kind in (SELECTION, FULL, RECENT)]
    assert not torch.equal(different[0], different[1]) and not torch.equal(different[0], different[2])


def test_texts_of_a_batch_do_not_see_each_other(tokenizer: Tokenizer) -> None:
    model, ids = random_model(tokenizer), lay_out(DOCUMENTS, tokenizer).ids.tolist()
    together = token_bits(model, [ids[:50], ids[50:170]])
    alone = [token_bits(model, [part])[0] for part in (ids[:50], ids[50:170])]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, **TOL["bits in a batch", "float32"].bounds)


def test_refusals(tokenizer: Tokenizer) -> None:
    model = random_model(tokenizer)
    tokens = len(lay_out(DOCUMENTS, tokenizer).ids)
    assert usable_lengths(model, tokens, (8, 64, tokens - 1, tokens, 5000)) == (64, tokens - 1)
    for arguments, message in (
        ({"documents": []}, "no documents"),
        ({"lengths": [8]}, "nothing is left out"),
        ({"lengths": [tokens]}, "give more text"),
        ({"lengths": [5000]}, "reads 2 to 4096"),
        ({"lengths": None}, "none of the lengths"),
        ({"lengths": [64], "every_layer_full": model}, "whose layers are all Full"),
    ):
        chosen = {"documents": DOCUMENTS, **arguments}
        with pytest.raises(ValueError, match=message):
            evaluate_prices(model, tokenizer, **chosen)  # type: ignore[arg-type]
    wider = GlmMoeDsa(preset("tiny").replace(vocab_size=400, indexer_types=("full",) * 6)).initialise(0)
    with pytest.raises(ValueError, match="another vocabulary"):
        evaluate_prices(model, tokenizer, DOCUMENTS, lengths=[64], every_layer_full=wider)


def test_where_the_all_full_model_comes_from(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """An ancestor; else the indexers that the checkpoint still holds; else there is none."""
    full, shared = random_model(tokenizer, "FFFFFF"), random_model(tokenizer)
    for name, model in (("full", full), ("shared", shared), ("kept", full)):
        save_model(model, tmp_path / name)
        tokenizer.save(tmp_path / name)
    config = tmp_path / "kept" / "config.json"
    facts = json.loads(config.read_text())
    config.write_text(json.dumps(facts | {"indexer_types": ["full"] * 3 + ["shared"] * 3}))

    def found(name: str, ancestor: str | None = None) -> GlmMoeDsa | None:
        path = str(tmp_path / name)
        model = load_model(path)
        other = None if ancestor is None else str(tmp_path / ancestor)
        return load_every_layer_full(path, model, tokenizer, other, dtype="float32", device="cpu")

    assert found("shared") is None and found("full") is None
    ancestor = found("shared", "full")
    with pytest.warns(UserWarning, match="dropped"):
        kept = found("kept")
    ids = torch.arange(40)[None]
    for model in (ancestor, kept):
        assert model is not None and torch.equal(model(ids), full(ids))
    train_bpe(["other words"], 300, SPECIAL_TOKENS).save(tmp_path / "full")
    with pytest.raises(ValueError, match="another tokenizer"):
        found("shared", "full")
