"""Packing files under a budget of tokens: order, cuts, determinism, and that the budget holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexshare.repository.context import (
    PackedContext,
    fit_after,
    pack_context,
    rank_files,
)
from indexshare.repository.source_tree import SkippedFile, SourceFile


def header(name: str) -> str:
    return f"# file: {name}\n"


def words(text: str) -> int:
    return len(text.split())


def file(name: str, text: str = "x = 1\n") -> SourceFile:
    return SourceFile(name=name, text=text)


def pack(files: list[SourceFile], before: str, budget: int, **changes: object) -> PackedContext:
    settings = {"target_name": "t.py", "count_tokens": words, "header": header, **changes}
    return pack_context(files, before_cursor=before, budget=budget, **settings)  # type: ignore[arg-type]


def test_the_target_comes_last_and_only_once() -> None:
    packed = pack([file("a.py"), file("t.py", "secret\n")], "def f():\n    ret", 1000)
    assert packed.pieces == ("# file: a.py\nx = 1\n", "# file: t.py\ndef f():\n    ret")
    assert [f.name for f in packed.files] == ["a.py", "t.py"]
    assert "secret" not in "".join(packed.pieces)
    assert packed.left_out == ()


def test_more_relevant_files_are_nearer_to_the_cursor() -> None:
    files = [
        file("README.md", "frobnicate frobnicate"),
        file("far/unrelated.py", "nothing = 0\n"),
        file("near/used.py", "def helper(): ...\n"),
        file("far/imported.py", "y = 2\n"),
    ]
    before = "from far.imported import y\n\nresult = helper(frobnicate)\n"
    packed = pack(files, before, 1000, target_name="near/t.py")
    order = [f.name for f in packed.files]
    assert order == ["README.md", "far/unrelated.py", "near/used.py", "far/imported.py", "near/t.py"]


def test_the_least_relevant_file_is_cut_at_a_line_and_the_rest_left_out() -> None:
    files = [
        file("a.py", "one two\nthree four\nfive six\n"),
        file("b.py", "x = 1\n"),
        file("used.py", "alpha beta\n"),
    ]
    # target: 3 header words + 2; used.py: 3 + 2; leaves 7 of 17 for a.py: header and two lines.
    packed = pack(files, "alpha beta", 17)
    assert packed.pieces[0] == "# file: a.py\none two\nthree four\n"
    first = packed.files[0]
    assert (first.lines, first.total_lines, first.tokens) == (2, 3, 7)
    assert [f.name for f in packed.files] == ["a.py", "used.py", "t.py"]
    assert packed.left_out == ("b.py",)
    assert packed.tokens == 17


def test_a_file_with_no_room_for_a_line_is_left_out_whole() -> None:
    packed = pack([file("a.py", "one two three four\n"), file("b.py")], "alpha", 10)
    assert [f.name for f in packed.files] == ["t.py"]
    assert packed.left_out == ("a.py", "b.py")


def test_a_target_that_is_too_long_keeps_its_last_lines() -> None:
    packed = pack([file("a.py")], "\n".join(f"line {n}" for n in range(100)), 3 + 2 * 4)
    assert packed.pieces == ("# file: t.py\nline 96\nline 97\nline 98\nline 99",)
    assert (packed.files[0].lines, packed.files[0].total_lines) == (4, 100)
    assert packed.left_out == ("a.py",)


def test_a_budget_below_one_line_is_an_error() -> None:
    with pytest.raises(ValueError, match="budget is 4 tokens; the line at the cursor needs 6"):
        pack([], "one two three", 4)


def test_separators_count() -> None:
    files = [file(f"{n}.py", "x\n") for n in range(10)]
    for separator in (0, 1, 5):
        packed = pack(files, "y", 40, separator_tokens=separator)
        expected = sum(words(p) for p in packed.pieces) + separator * (len(packed.pieces) - 1)
        assert packed.tokens == expected <= 40
    assert len(pack(files, "y", 40, separator_tokens=5).pieces) < len(pack(files, "y", 40).pieces)


def test_skipped_entries_are_handed_through() -> None:
    entry = SkippedFile(name="a.bin", reason="binary")
    assert pack([], "x", 10, skipped=[entry]).skipped == (entry,)


def test_a_huge_file_is_not_tokenised_whole() -> None:
    longest = 0

    def counting(text: str) -> int:
        nonlocal longest
        longest = max(longest, len(text))
        return len(text) // 4

    pack([file("a.py", "some text here\n" * 100_000)], "x", 1000, count_tokens=counting)
    assert longest < 20_000


texts = st.lists(st.text(alphabet="ab \n", max_size=60), max_size=8)


@given(files=texts, before=st.text(alphabet="ab \n", max_size=80), budget=st.integers(1, 80))
def test_the_budget_always_holds_and_order_of_input_does_not_matter(files: list[str], before: str, budget: int) -> None:
    sources = [file(f"{n}.py", text.rstrip("\n") + "\n") for n, text in enumerate(files)]
    try:
        packed = pack(sources, before, budget, count_tokens=len, separator_tokens=1)
    except ValueError:
        assert len(header("t.py")) + len(before.split("\n")[-1]) > budget
        return
    assert packed.tokens == sum(map(len, packed.pieces)) + len(packed.pieces) - 1 <= budget
    assert packed == pack(sources[::-1], before, budget, count_tokens=len, separator_tokens=1)
    assert (header("t.py") + before).endswith(packed.pieces[-1].removeprefix(header("t.py")))
    shown = {f.name for f in packed.files[:-1]}
    assert shown | set(packed.left_out) == {s.name for s in sources}
    assert shown.isdisjoint(packed.left_out)


def test_the_order_does_not_depend_on_the_hash_seed() -> None:
    program = """
from indexshare.repository.context import rank_files
from indexshare.repository.source_tree import SourceFile
words = [f"word{n}" for n in range(60)]
files = [SourceFile(name=f"{n}.py", text=" ".join(words[n % 7 :: 1 + n % 5]) + "\\n") for n in range(30)]
print([f.name for f in rank_files(files, "t.py", " ".join(words))])
"""
    root = Path(__file__).resolve().parents[3]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_ties_are_broken_by_name() -> None:
    files = [file("b.py"), file("a.py"), file("c.py")]
    assert [f.name for f in rank_files(files, "t.py", "")] == ["a.py", "b.py", "c.py"]


def test_an_edit_leaves_a_steady_beginning() -> None:
    """New words before the cursor change which file is the most like them, but not where files stand."""
    files = [file(f"lib/{n}.py", f"alpha{n} beta{n} gamma{n}\n" * 3) for n in range(6)]
    files += [file("lib/t.py"), file("used.py", "x = 2\n"), file("README.md", "alpha0\n")]
    before = "import used\n" + "\n".join(f"alpha{n}" for n in range(6))

    def steady(text: str, budget: int = 1000) -> PackedContext:
        return pack(files, text, budget, target_name="lib/t.py", steady=True)

    packed = steady(before)
    assert [f.name for f in packed.files] == ["README.md", *(f"lib/{n}.py" for n in range(6)), "used.py", "lib/t.py"]
    for edit in ("\nbeta3 gamma3 = 1", "\nbeta5", "\nREADME", ""):
        assert steady(before + edit).pieces[:-1] == packed.pieces[:-1]
        assert steady(before + edit).tokens == sum(map(words, steady(before + edit).pieces))
    tight = steady(before, 64)  # a file is cut, and stays cut at the same line while the target grows
    assert tight.files[:-1] == steady(before + "\nmore", 64).files[:-1]
    assert tight.tokens <= 64 and any(f.lines < f.total_lines for f in tight.files)


def test_a_target_that_is_too_long_loses_its_beginning_in_steps() -> None:
    lines = [f"line {n}" for n in range(1000)]
    starts = set()
    for end in range(900, 964):
        packed = pack([], "\n".join(lines[:end]), 3 + 2 * 200, steady=True)
        starts.add(packed.pieces[0].split("\n")[1])
        assert packed.tokens <= 403
    assert starts <= {"line 704", "line 768"} and len(starts) == 2
    assert pack([], "\n".join(lines), 3 + 2 * 4, steady=True).files[0].lines == 4


def test_what_stands_after_the_cursor_is_cut_at_a_line() -> None:
    after = " b c\nd e f\n\ng\n"
    assert fit_after(after, 100, words) == after
    assert fit_after(after, 5, words) == " b c\nd e f\n\n" and fit_after(after, 4, words) == " b c\n"
    assert fit_after(after, 1, words) == fit_after(after, 0, words) == fit_after(after, -3, words) == ""
    assert fit_after("\n\n", 9, words) == fit_after("", 9, words) == ""
