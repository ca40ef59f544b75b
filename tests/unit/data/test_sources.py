"""Batches: each token once per epoch, exactly the same after a resume, and retrieval tasks that hold their answers."""

import ast
import itertools
import random
import re
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indexshare.data import tasks
from indexshare.data.corpus import TokenCorpus
from indexshare.data.positions import stretched_positions
from indexshare.data.sources import Mixture, PackedText, RepeatedText, RetrievalTasks, Source
from indexshare.data.sources.repeated import repeated_part
from indexshare.data.splitting import Document
from indexshare.data.tasks import retrieval_text
from indexshare.text.tokenizer import Tokenizer, train_bpe


class NumberedCorpus:
    """Documents of given lengths whose tokens are their own places; stands in for `TokenCorpus`."""

    def __init__(self, lengths: list[int], groups: int = 1) -> None:
        self.starts = np.cumsum([0, *lengths])
        self.groups = [g for g in np.array_split(np.arange(len(lengths)), groups) if len(g)]
        self.imports: list[list[int]] = [[] for _ in lengths]
        self.num_documents = len(lengths)

    def __len__(self) -> int:
        return int(self.starts[-1])

    reading_order = TokenCorpus.reading_order

    def document(self, index: int) -> np.ndarray:
        return np.arange(self.starts[index], self.starts[index + 1])


def _packed(corpus: Any, seed: int = 0) -> PackedText:
    return PackedText(corpus, seed=seed)


def _epoch(source: PackedText, length: int) -> list[np.ndarray]:
    """All windows of the epoch that begins now."""
    windows, epoch = [source.window(length)], source.state()["epoch"]
    while True:
        before = source.state()
        window = source.window(length)
        if source.state()["epoch"] != epoch:
            source.restore(before)
            return windows
        windows.append(window)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    length=st.integers(2, 20),
    groups=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_every_token_is_a_target_once_per_epoch(lengths: list[int], length: int, groups: int, seed: int) -> None:
    corpus = NumberedCorpus(lengths, groups)
    source = _packed(corpus, seed)
    if len(corpus) < 2 * length - 1:
        with pytest.raises(ValueError, match=f"too few for windows of {length}"):
            source.window(length)
        return
    orders = []
    for _ in range(3):
        windows = _epoch(source, length)
        assert all(w.dtype == np.int64 and w.shape == (length,) for w in windows)
        targets = Counter(int(i) for w in windows for i in w[1:])
        assert max(targets.values()) == 1
        stride = length - 1
        assert len(corpus) - len(targets) <= 2 * stride  # less than a window at either end, and the first token
        orders.append([w.tolist() for w in windows])
    if len(corpus) > 20 * length:
        assert orders[0] != orders[1] != orders[2]


def test_windows_are_text_in_order_within_documents() -> None:
    """Inside a window tokens of one document follow each other; a new document begins at its start."""
    corpus = NumberedCorpus([7, 13, 29, 3, 17, 40], groups=2)
    starts = set(corpus.starts.tolist())
    for window in _epoch(_packed(corpus), 12):
        for before, after in itertools.pairwise(window.tolist()):
            assert after == before + 1 or (after in starts and before + 1 in starts)


def test_packages_stay_together() -> None:
    corpus = NumberedCorpus([10] * 12, groups=3)
    source = _packed(corpus)
    source.window(5)
    package = [next(g for g, members in enumerate(corpus.groups) if d in members) for d in source._order]
    assert sum(a != b for a, b in itertools.pairwise(package)) == 2


def test_imported_files_come_first() -> None:
    """A chain, a diamond and a circle: what is imported stands before, each file once, packages together."""
    corpus = NumberedCorpus([5] * 12, groups=2)
    corpus.imports[5], corpus.imports[4], corpus.imports[3] = [4], [3], [0, 1]
    corpus.imports[9], corpus.imports[10], corpus.imports[11] = [10, 11], [8], [8]
    corpus.imports[6], corpus.imports[7] = [7], [6]
    orders = [corpus.reading_order(np.random.default_rng(seed)).tolist() for seed in range(20)]  # type: ignore[misc]
    assert len({tuple(order) for order in orders}) > 10
    for order in orders:
        assert sorted(order) == list(range(12))
        place = {document: i for i, document in enumerate(order)}
        assert {place[i] // 6 for i in range(6)} in ({0}, {1})
        assert max(place[0], place[1]) < place[3] < place[4] < place[5]
        assert place[8] < min(place[10], place[11]) and max(place[10], place[11]) < place[9]
        assert abs(place[6] - place[7]) == 1


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([retrieval_text(5, i, 300) for i in range(8)], 600)


@pytest.fixture(scope="module")
def corpus(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    documents = [Document(name=f"p{i % 3}/m{i}.py", text=f"x_{i} = {i}\n" * (3 + i)) for i in range(12)]
    return TokenCorpus.build(documents, tokenizer, tmp_path_factory.mktemp("data") / "train.bin")


def _mixture(corpus: TokenCorpus, tokenizer: Tokenizer, seed: int = 3) -> Mixture:
    sources: dict[str, Source] = {
        "text": PackedText(corpus, seed=seed),
        "retrieval": RetrievalTasks(tokenizer, seed=seed + 1),
    }
    return Mixture(sources, {"text": 0.7, "retrieval": 0.3}, seed=seed)


def test_resume_gives_the_same_batches_from_every_position(corpus: TokenCorpus, tokenizer: Tokenizer) -> None:
    """Far enough for several epochs of the text; the state goes through a fresh mixture every time."""
    whole, states, batches = _mixture(corpus, tokenizer), [], []
    for _ in range(25):
        states.append(whole.state())
        batches.append(whole.batch(3, 16).tokens)
    assert states[-1]["text.epoch"] >= 1 and states[-1]["retrieval.index"] > 10
    for position, state in enumerate(states):
        resumed = _mixture(corpus, tokenizer)
        resumed.restore(dict(state))
        for wanted in batches[position : position + 3]:
            assert torch.equal(resumed.batch(3, 16).tokens, wanted)
    assert batches[0].dtype == torch.int64 and batches[0].shape == (3, 17)
    assert not torch.equal(_mixture(corpus, tokenizer, seed=4).batch(3, 16).tokens, batches[0])


def test_restoring_into_a_used_stream_forgets_it(corpus: TokenCorpus, tokenizer: Tokenizer) -> None:
    mixture = _mixture(corpus, tokenizer)
    state, first = mixture.state(), mixture.batch(4, 16).tokens
    for _ in range(20):
        mixture.batch(4, 16)
    mixture.restore(state)
    assert torch.equal(mixture.batch(4, 16).tokens, first)


def test_rows_come_by_weight(tokenizer: Tokenizer) -> None:
    class Constant:
        def __init__(self, value: int) -> None:
            self.value = value

        def window(self, length: int) -> np.ndarray:
            return np.full(length, self.value)

        def state(self) -> dict[str, int]:
            return {}

        def restore(self, state: dict[str, int]) -> None:
            assert state == {}

    mixture = Mixture({"a": Constant(0), "b": Constant(1), "c": Constant(2)}, {"a": 3, "b": 1, "c": 0}, seed=0)
    rows = mixture.batch(2000, 4).tokens[:, 0]
    assert 0.21 < (rows == 1).float().mean() < 0.29
    assert not (rows == 2).any()


@pytest.mark.parametrize("weights", [{"text": 1.0}, {"text": 1.0, "x": 1.0}])
def test_mixture_mistakes(weights: dict[str, float], corpus: TokenCorpus, tokenizer: Tokenizer) -> None:
    sources: dict[str, Source] = {"text": PackedText(corpus, seed=0), "retrieval": RetrievalTasks(tokenizer, seed=0)}
    with pytest.raises(ValueError, match="weights name"):
        Mixture(sources, weights, seed=0)
    for bad in ({"text": -1.0, "retrieval": 2.0}, {"text": 0.0, "retrieval": 0.0}):
        with pytest.raises(ValueError, match="must be non-negative"):
            Mixture(sources, bad, seed=0)
    with pytest.raises(ValueError, match="data state has"):
        Mixture(sources, {"text": 1, "retrieval": 1}, seed=0).restore({"rows": 0})


def test_windows_that_repeat_themselves_come_more_often() -> None:
    """A corpus whose first half says everything twice: its windows are taken where there is a choice."""
    assert repeated_part(np.arange(64)) == 0.0 == repeated_part(np.arange(3))
    assert repeated_part(np.tile(np.arange(32), 2)) == pytest.approx(27 / 59)
    assert repeated_part(np.repeat(np.arange(60), 8)) < 0.05, "what is repeated at once is no retrieval"

    class Halves(NumberedCorpus):
        def document(self, index: int) -> np.ndarray:
            ids = super().document(index)
            return ids if index % 2 else ids // 64 * 64 + ids % 32

    corpus: Any = Halves([512] * 16)
    source, plain = RepeatedText(corpus, seed=0), _packed(corpus)
    chosen, all_of_them = ([repeated_part(s.window(128)) for _ in range(16)] for s in (source, plain))
    assert np.mean(chosen) > np.mean(all_of_them) + 0.1
    state = source.state()
    wanted = source.window(128)
    again = RepeatedText(corpus, seed=0)
    again.restore(state)
    assert np.array_equal(again.window(128), wanted)
    with pytest.raises(ValueError, match="too few for windows"):
        source.check_length(9000)


# Generated tasks


def test_texts_are_a_function_of_seed_and_index() -> None:
    texts = [retrieval_text(1, i, 400) for i in range(40)]
    assert texts == [retrieval_text(1, i, 400) for i in range(40)]
    assert len(set(texts)) == 40
    assert texts != [retrieval_text(2, i, 400) for i in range(40)]
    # A fixed point: streams of old checkpoints must go on as they began.
    assert retrieval_text(0, 0, 100).splitlines()[1] == "PARSE_COLUMN_TABLE = 73607"


def _answers(text: str) -> list[tuple[str, int, int]]:
    """(name, number, place) of every assertion a reader could answer."""
    pattern = re.compile(r"^assert (settings\['\w+'\]|\w+) == (\d+)$", re.M)
    return [(m[1], int(m[2]), m.start()) for m in pattern.finditer(text)]


@cache
def _table(source: str) -> dict[str, int]:
    table = ast.literal_eval(source)
    assert isinstance(table, dict)
    return table


def _value_before(text: str, name: str, place: int) -> int:
    """What the code before `place` says the value of `name` is, following assignments backwards."""
    seen = text[:place]
    if name.startswith("settings["):
        return _table(seen[seen.index("{") : seen.index("}") + 1])[name[len("settings['") : -2]]
    found = re.findall(rf"^{name} = (\w+)$", seen, re.M)
    assert len(found) == 1, f"{name} is given {len(found)} times"
    return int(found[0]) if found[0].isdigit() else _value_before(text, found[0], place)


@pytest.mark.parametrize("task", [tasks.key_value_recall, tasks.needle, tasks.variable_tracking])
@pytest.mark.parametrize("num_chars", [0, 300, 4000, 40_000])
def test_every_question_has_its_answer_before_it(task: Any, num_chars: int) -> None:
    for seed in range(10):
        text = task(random.Random(seed), num_chars)
        answers = _answers(text)
        assert len(answers) >= 2
        for name, value, place in answers:
            assert _value_before(text, name, place) == value


def test_recall_asks_for_every_key_once() -> None:
    text = tasks.key_value_recall(random.Random(0), 60_000)  # more keys than there are plain names before suffixes
    keys = re.findall(r"^    '(\w+)': \d+,$", text, re.M)
    assert len(keys) > 700 and len(set(keys)) == len(keys)
    assert sorted(name[len("settings['") : -2] for name, _, _ in _answers(text)) == sorted(keys)


@pytest.mark.parametrize("num_chars", [100, 4000])
def test_copies_are_word_for_word(num_chars: int) -> None:
    for seed in range(10):
        text = tasks.copying(random.Random(seed), num_chars)
        first, second = text.split("# the same steps again\n")
        block = second
        assert block.startswith("def ") and first.startswith(block)
        assert len(block.splitlines()) >= 2


def test_texts_have_about_the_wanted_length(tokenizer: Tokenizer) -> None:
    """Answers stand at the end, so texts of a window's length must not be cut."""
    fits = [len(tokenizer.encode(retrieval_text(0, i, 1000))) <= 1000 for i in range(40)]
    assert sum(fits) >= 36


def test_task_windows_are_filled_and_resumable(tokenizer: Tokenizer) -> None:
    source = RetrievalTasks(tokenizer, seed=1)
    end = tokenizer.eos_ids[0]
    windows, states = [], []
    for _ in range(12):
        states.append(source.state())
        windows.append(source.window(200))
        assert windows[-1].shape == (200,)
    assert any(end in w for w in windows)
    text = tokenizer.decode(windows[0].tolist()).split("<|endoftext|>")[0]
    assert retrieval_text(1, 0, 200).startswith(text)
    for state, window in zip(states, windows, strict=True):
        again = RetrievalTasks(tokenizer, seed=1)
        again.restore(state)
        assert np.array_equal(again.window(200), window)


@settings(deadline=None, max_examples=80)
@given(rows=st.integers(1, 9), length=st.integers(1, 40), more=st.integers(0, 900), seed=st.integers(0, 99))
def test_stretched_positions_grow_from_zero_within_reach(rows: int, length: int, more: int, seed: int) -> None:
    positions = stretched_positions(rows, length, length + more, seed=[seed])
    assert positions.shape == (rows, length) and positions.dtype == torch.int64
    assert bool((positions[:, 0] == 0).all()) and int(positions.max()) < length + more
    steps = positions.diff(dim=1)
    assert bool((steps >= 1).all())
    assert bool(((steps > 1).sum(1) <= 2).all())
    assert torch.equal(positions, stretched_positions(rows, length, length + more, seed=[seed]))


def test_stretched_positions_cover_all_scales() -> None:
    last = stretched_positions(4000, 64, 64 * 1024, seed=[3])[:, -1].float().log2()
    share = torch.histc(last, bins=5, min=6, max=16) / len(last)
    assert bool((share > 0.1).all()), share


def test_stretched_positions_need_room() -> None:
    with pytest.raises(ValueError, match=r"reach is 9; rows of 10 tokens"):
        stretched_positions(2, 10, 9, seed=[0])
