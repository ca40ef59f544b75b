"""Lookups: every answer stands before its question, names look alike, and windows are filled with whole questions."""

import random
import re
from itertools import combinations

import numpy as np
import pytest

from indexshare.data.lookups import LOOKUPS, choose_lookup, close_names, lookup_size, needles, recall, two_hops
from indexshare.data.sources import LookupTasks
from indexshare.text.tokenizer import END_OF_TEXT, Tokenizer, train_bpe


def entries(text: str, table: str) -> dict[str, str]:
    """Keys and values of a table, which has each key once."""
    found = re.search(rf"^{table} = {{\n(.*?)^}}", text, re.M | re.S)
    assert found is not None
    pairs = re.findall(r"^    '(\w+)': '?(\w+)'?,$", found[1], re.M)
    assert len({key for key, _ in pairs}) == len(pairs) == found[1].count("\n")
    return dict(pairs)


SIZES = [0, 300, 4000, 40_000]


@pytest.mark.parametrize("num_chars", SIZES)
def test_recall_asks_for_what_the_table_says(num_chars: int) -> None:
    shares = []
    for seed in range(12):
        text = recall(random.Random(seed), num_chars)
        settings = entries(text, "settings")
        asked = re.findall(r"^assert settings\['(\w+)'\] == (\d+)$", text, re.M)
        assert asked and len({key for key, _ in asked}) == len(asked)
        assert all(settings[key] == value for key, value in asked)
        shares.append(text.index("}") / len(text))
    if num_chars == SIZES[-1]:
        assert max(shares) > 0.75 and min(shares) < 0.65, "tables that fill most of a text, and many questions"


@pytest.mark.parametrize("num_chars", SIZES)
def test_two_hops_go_through_both_tables(num_chars: int) -> None:
    for seed in range(12):
        text = two_hops(random.Random(seed), num_chars)
        aliases, settings = entries(text, "aliases"), entries(text, "settings")
        asked = re.findall(r"^assert settings\[aliases\['(\w+)'\]\] == (\d+)$", text, re.M)
        assert asked and all(settings[aliases[key]] == value for key, value in asked)
        assert not set(aliases) & set(settings)


@pytest.mark.parametrize("num_chars", SIZES)
def test_needles_are_asked_after_they_are_given(num_chars: int) -> None:
    for seed in range(12):
        text = needles(random.Random(seed), num_chars)
        given = {
            name: (value, text.index(f"{name} = {value}"))
            for name, value in re.findall(r"^([A-Z_0-9]+) = (\d+)$", text, re.M)
        }
        asked = [(m[1], m[2], m.start()) for m in re.finditer(r"^assert ([A-Z_0-9]+) == (\d+)$", text, re.M)]
        assert sorted(name for name, _, _ in asked) == sorted(given), "each once"
        assert all(given[name][0] == value and given[name][1] < place for name, value, place in asked)


def test_close_names_share_all_but_one_word() -> None:
    for seed, count in enumerate((2, 10, 60, 400)):
        names = close_names(random.Random(seed), count)
        assert len(set(names)) == len(names) == count
        near = {
            name
            for a, b in combinations(names, 2)
            if sum(x != y for x, y in zip(a.split("_"), b.split("_"), strict=True)) == 1
            for name in (a, b)
        }
        assert count < 10 or len(near) > 0.8 * count
    assert len(close_names(random.Random(0), 20_000)) == 20_000, "more than there are combinations of words"


def test_sizes_cover_all_scales_up_to_the_row() -> None:
    rng = random.Random(0)
    sizes = [lookup_size(rng, 16_384) for _ in range(2000)]
    assert max(sizes) == 16_384 and min(sizes) >= 256
    assert 0.45 < sizes.count(16_384) / len(sizes) < 0.55
    for low in (256, 1024, 4096):
        assert sum(low <= size < 4 * low for size in sizes) > 0.1 * len(sizes)
    assert lookup_size(rng, 100) == 100


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([LOOKUPS[name](random.Random(i), 1500) for i, name in enumerate(LOOKUPS)], 500)


def test_streams_are_functions_of_seed_and_index(tokenizer: Tokenizer) -> None:
    kinds = {choose_lookup(0, index)[0] for index in range(60)}
    assert kinds == set(LOOKUPS)
    source, again = LookupTasks(tokenizer, seed=1), LookupTasks(tokenizer, seed=1)
    states, windows = [], []
    for _ in range(8):
        states.append(source.state())
        windows.append(source.window(700))
    assert all(window.shape == (700,) and window.dtype == np.int64 for window in windows)
    for state, window in zip(states, windows, strict=True):
        again.restore(state)
        assert np.array_equal(again.window(700), window)
    assert not np.array_equal(LookupTasks(tokenizer, seed=2).window(700), windows[0])


def test_questions_are_not_cut_off(tokenizer: Tokenizer) -> None:
    """Whatever the vocabulary: texts that should fill a window seldom pass its end, and hardly fall short."""
    for vocabulary in (tokenizer, train_bpe(["x"], 300)):
        source, end = LookupTasks(vocabulary, seed=3), vocabulary.id_of(END_OF_TEXT)
        sizes = []  # of the first text in each window; 3,001 if it is cut
        for index in range(80):
            source.restore({"index": index})
            sizes.append([*source.window(3000).tolist(), end].index(end) + 1)
        assert sum(size > 3000 for size in sizes) < 0.2 * len(sizes)
        assert sum(size > 2000 for size in sizes) > 0.4 * len(sizes)
