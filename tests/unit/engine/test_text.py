"""Text as it streams: stop strings across any cut, whole characters, nothing shown that is taken back."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexshare.engine.text import StopMatcher, TextAssembler
from indexshare.text.tokenizer import Tokenizer, train_bpe


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["def f(x):\n    return x\n", "naïve café, 日本語"], 300, ("<|endoftext|>", "<|end|>"))


def reference(text: str, stops: tuple[str, ...]) -> str:
    """Cut before the stop that is complete first; among those ending together, the longest."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@given(
    st.text("ab\n", max_size=12),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 12), max_size=6),
)
def test_result_does_not_depend_on_the_cuts(text: str, stops: list[str], cuts: list[int]) -> None:
    bounds = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    matcher = StopMatcher(stops)
    expected, shown = reference(text, tuple(stops)), ""
    for begin, end in itertools.pairwise(bounds):
        shown += matcher.push(text[begin:end])
        assert expected.startswith(shown), "something was shown that is not part of the text"
    shown += matcher.finish()
    assert shown == expected
    assert matcher.stopped == (expected != text or text in stops)
    assert not any(stop in shown for stop in stops)


def test_only_a_possible_start_is_held_back() -> None:
    matcher = StopMatcher(["\n\nclass", "END"])
    assert matcher.push("x = 1\n") == "x = 1"
    assert matcher.push("y") == "\ny"
    assert matcher.push(" = EN") == " = "
    assert matcher.push("V\n\ncl") == "ENV"
    assert matcher.push("ass A") == ""
    assert matcher.stopped
    assert matcher.push("more") == ""
    assert matcher.finish() == ""


def test_no_stop_strings_hold_nothing() -> None:
    matcher = StopMatcher()
    assert matcher.push("abc") == "abc"
    assert matcher.finish() == ""


@pytest.mark.parametrize("text", ["def f(x):\n    return x\n", "naïve café 日本語 🙂", "", "\x00\x7f"])
def test_pieces_join_to_the_decoded_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assembler = TextAssembler(tokenizer, ())
    pieces = [assembler.push(i, last=n == len(ids) - 1) for n, i in enumerate(ids)]
    assert "".join(pieces) == assembler.text == text
    assert not any("�" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_marked(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🙂")
    assert len(ids) > 1
    assembler = TextAssembler(tokenizer, ())
    assert [assembler.push(ids[0]), assembler.finish()] == ["", "�"]


def test_special_and_unknown_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    [a] = tokenizer.encode("a")
    end = tokenizer.id_of("<|end|>")
    assembler = TextAssembler(tokenizer, ())
    assert [assembler.push(i) for i in (a, end, tokenizer.vocab_size + 5)] == ["a", "", ""]


def test_a_stop_id_is_silent_only_where_it_ends_the_text(tokenizer: Tokenizer) -> None:
    [a] = tokenizer.encode("a")
    assembler = TextAssembler(tokenizer, (), silent=(a,))
    assert [assembler.push(a), assembler.push(a, last=True)] == ["a", ""]


def test_a_stop_string_may_be_completed_by_the_last_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🙂")
    assembler = TextAssembler(tokenizer, ("�",))
    assert assembler.push(ids[0], last=True) == ""
    assert assembler.stopped


def test_without_a_tokenizer_there_is_no_text() -> None:
    assembler = TextAssembler(None, ())
    assert [assembler.push(5), assembler.push(6, last=True), assembler.text] == ["", "", ""]
    with pytest.raises(ValueError, match="stop strings need a tokenizer"):
        TextAssembler(None, ("x",))
