"""Renamed text: the same code under other names, alike in every file, and a stream that resumes."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from indexshare.data.corpus import TokenCorpus
from indexshare.data.renaming import Renamer
from indexshare.data.sources import RenamedText
from indexshare.data.splitting import Document
from indexshare.text.imports import definitions
from indexshare.text.tokenizer import END_OF_TEXT, SPECIAL_TOKENS, Tokenizer, train_bpe

STORE = """class StoreReader:
    def read_entry(self, index):
        self.last_index = index
        return self.append(index)
"""
USER = """from store import StoreReader

def find_things(reader: StoreReader):
    return [reader.read_entry(i) for i in range(3)]
"""


def corpus_texts() -> list[tuple[str, str]]:
    """The two files, and four packages that all say `append` and bring words."""
    others = [(f"p{i}", f"def append(x): pass\ndef green_{word}(x): pass\nBlueFish(green_{word})\n" * 3)
              for i, word in enumerate(("cat", "dog", "cow", "hen"))]  # fmt: skip
    return [("store", STORE), ("store", USER), *others, *others]


def test_names_change_alike_and_nothing_else_does() -> None:
    renamer = Renamer(corpus_texts())
    changed = set[str]()
    for seed in range(20):
        store, user = renamer.rename([STORE, USER], random.Random(seed))
        new = definitions(store)
        assert "append" in store, "what many packages use stays"
        assert len(new) == 3 and len(store.splitlines()) == 4
        assert "last_index" in new, "said once: nothing could be looked up"
        (reader,) = [name for name in new if name[0].isupper()]
        assert f"from store import {reader}" in user and f"reader: {reader}" in user
        assert [name for name in new if f"reader.{name}(i)" in user], "the method is called by its new name"
        assert "self" in store and "range(3)" in user and "index" in store
        changed |= new
        assert renamer.rename([STORE, USER], random.Random(seed)) == [store, user]
    assert {"StoreReader", "read_entry"} < changed and len(changed) > 6, "half of the names at least, not always all"


def test_a_new_name_is_nobody_elses() -> None:
    renamer = Renamer(corpus_texts())
    text = "".join(f"def name_{a}{b}(x): pass\nname_{a}{b}(1)\n" for a in "abc" for b in "xyz")
    for seed in range(30):
        (renamed,) = renamer.rename([text], random.Random(seed))
        assert len(definitions(renamed)) == 9


def test_text_without_words_stays_as_it_is() -> None:
    assert Renamer([]).rename([STORE], random.Random(0)) == [STORE]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return train_bpe((text for _, text in corpus_texts()), 300, SPECIAL_TOKENS)


@pytest.fixture
def make_source(tokenizer: Tokenizer, tmp_path: Path) -> Callable[[], RenamedText]:
    documents = [Document(name=f"{package}/m{i}.py", text=text) for i, (package, text) in enumerate(corpus_texts())]
    corpus = TokenCorpus.build(documents, tokenizer, tmp_path / "train.bin")
    return lambda: RenamedText(corpus, tokenizer, seed=3)


def test_windows_are_full_differ_and_resume(make_source: Callable[[], RenamedText], tokenizer: Tokenizer) -> None:
    source = make_source()
    source.check_length(201)
    first = [source.window(201) for _ in range(4)]
    assert all(window.shape == (201,) and window.dtype == np.int64 for window in first)
    assert any(tokenizer.id_of(END_OF_TEXT) in window for window in first), "files are still closed"
    state = source.state()
    after = [source.window(201) for _ in range(3)]
    again = make_source()
    again.restore(state)
    assert all(np.array_equal(a, b) for a, b in zip(after, (again.window(201) for _ in range(3)), strict=True))
    with pytest.raises(ValueError, match="too few for windows"):
        make_source().check_length(10**6)
