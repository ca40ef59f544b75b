"""Gaps of every kind, rows that hold both orders and end with the middle, and exact resumption."""

import random
from pathlib import Path

import numpy as np
import pytest

import indexshare
from indexshare.data import filling
from indexshare.data.corpus import TokenCorpus
from indexshare.data.filling import choose_gap, line_gap
from indexshare.data.sources import FilledGaps, Material, make_source
from indexshare.data.splitting import Document
from indexshare.text.fill import fill_tokens, learned_fill
from indexshare.text.tokenizer import Tokenizer, train_bpe

TEXT = "import os\n\n\ndef load(path, depth=3):\n    value = read(path, depth)\n    return value + 1\n"
SOURCES = [
    Document(name=f"data/{p.name}", text=p.read_text(encoding="utf-8"))
    for p in sorted((Path(indexshare.__file__).parent / "data").glob("*.py"))
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([document.text for document in SOURCES], 600)


@pytest.fixture(scope="module")
def corpus(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    return TokenCorpus.build(SOURCES, tokenizer, tmp_path_factory.mktemp("fill") / "train.bin")


def test_lines_without_indentation_and_line_break() -> None:
    found = {TEXT[slice(*gap)] for seed in range(60) if (gap := line_gap(TEXT, random.Random(seed)))}
    assert found == {"import os", "def load(path, depth=3):", "value = read(path, depth)", "return value + 1"}
    two = {TEXT[slice(*gap)] for seed in range(60) if (gap := line_gap(TEXT, random.Random(seed), 2))}
    assert "value = read(path, depth)\n    return value + 1" in two and all(part.count("\n") == 1 for part in two)


def test_gaps_are_cut_at_lines_at_expressions_and_inside_words() -> None:
    def found(make: object) -> set[str]:
        assert callable(make)
        return {TEXT[slice(*gap)] for seed in range(200) if (gap := make(TEXT, random.Random(seed)))}

    assert {"path, depth", "path, depth=3"} <= found(filling._expression)
    assert {"read(path, depth)", "value + 1"} & found(filling._expression)
    assert {"load", "ad", "th"} & found(filling._inside_word) == {"ad", "th"}
    assert {"read(path, depth)", "depth)", ""} <= found(filling._rest_of_line)
    every = [choose_gap(TEXT, random.Random(seed)) for seed in range(300)]
    assert all(0 <= start < stop <= len(TEXT) for start, stop in every)
    assert len(set(every)) > 60 and choose_gap("x", random.Random(0)) == (0, 1)
    with pytest.raises(ValueError, match="an empty text has no gap"):
        choose_gap("", random.Random(0))


def test_a_row_holds_a_file_around_its_gap(corpus: TokenCorpus, tokenizer: Tokenizer) -> None:
    """Every middle, put back between its two sides, is text of a file; both orders occur, other files stand before."""
    source = make_source("fill", 1.0, Material(corpus=corpus, tokenizer=tokenizer), 0)
    tokens, end = fill_tokens(tokenizer), tokenizer.end_id
    assert tokens is not None
    orders, whole, context = set(), 0, 0
    texts = {document.name: document.text for document in SOURCES}
    for _ in range(16):
        window = source.window(900)
        assert window.shape == (900,) and window.dtype == np.int64  # type: ignore[union-attr]
        parts = np.split(window, np.flatnonzero(window == end) + 1)
        context += sum(tokens.middle not in part for part in parts)
        for part in (part.tolist() for part in parts if tokens.middle in part and part[-1] == end):
            at = {name: part.index(getattr(tokens, name)) for name in ("prefix", "suffix", "middle")}
            orders.add(at["suffix"] < at["prefix"])
            ends = sorted([*at.values(), len(part) - 1])
            said = {k: tokenizer.decode(part[i + 1 : next(e for e in ends if e > i)]) for k, i in at.items()}
            header = tokenizer.decode(part[: ends[0]])
            assert header.startswith("# file: data/") and header.endswith("\n")
            joined = said["prefix"] + said["middle"] + said["suffix"]
            assert joined.strip("\ufffd") in texts[header.removeprefix("# file: ").rstrip("\n")]
            whole += 1
    assert orders == {True, False} and whole >= 16 and context >= 8


def test_rows_resume_exactly(corpus: TokenCorpus, tokenizer: Tokenizer) -> None:
    source, states, windows = FilledGaps(corpus, tokenizer, seed=2), [], []
    for _ in range(6):
        states.append(source.state())
        windows.append(source.window(300))
    for state, window in zip(reversed(states), reversed(windows), strict=True):
        again = FilledGaps(corpus, tokenizer, seed=2)
        again.restore(state)
        assert np.array_equal(again.window(300), window)
    assert FilledGaps(corpus, tokenizer, seed=2).window(40).shape == (40,)


def test_a_tokenizer_without_the_tokens_is_refused(corpus: TokenCorpus) -> None:
    bare = train_bpe([TEXT], 300, ("<|endoftext|>",))
    with pytest.raises(ValueError, match="the tokenizer lacks the tokens to fill in the middle"):
        FilledGaps(corpus, bare, seed=0)
    assert fill_tokens(bare) is None and learned_fill(bare) is None


def test_what_a_model_has_learned_is_written_down(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert learned_fill(tokenizer) is None, "the names alone say nothing: every tokenizer trained here has them"
    marked = tokenizer.with_setting("fill_in_the_middle", True)
    marked.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    found = learned_fill(again)
    assert found == fill_tokens(tokenizer) and again.fingerprint == tokenizer.fingerprint
    assert again.settings["eos_token"] == "<|endoftext|>" and found is not None
    assert found.prompt([1, 2], [3]) == [found.suffix, 3, found.prefix, 1, 2, found.middle]
    assert found.prompt([1, 2], [3], suffix_first=False) == [found.prefix, 1, 2, found.suffix, 3, found.middle]
    others = train_bpe([TEXT], 300, ("<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"))
    foreign = learned_fill(others)
    assert foreign is not None and not foreign.suffix_first and foreign.middle == others.id_of("<|fim_middle|>")
