"""Corpora: what is read, the split by file and its leaks, and token files that survive a kill."""

import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexshare.data import corpus
from indexshare.data.corpus import STANDARD_LIBRARY, TextFolder, TokenCorpus, read_folder
from indexshare.data.splitting import Document, content_hash, is_held_out, split_documents, split_folder
from indexshare.text.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe


def _lines(seed: int, count: int = 40) -> list[str]:
    rng = random.Random(seed)
    return [f"value_{rng.randrange(10**6)} = compute({rng.randrange(10**6)})" for _ in range(count)]


def _document(name: str, lines: list[str]) -> Document:
    return Document(name=name, text="\n".join(lines) + "\n")


def _names(held_out: bool, count: int, part: float = 0.3) -> list[str]:
    """File names that fall on the wanted side of the split."""
    found = (f"module{i}.py" for i in range(10_000))
    return [name for name in found if is_held_out(name, part) == held_out][:count]


def test_reading_passes_over_what_is_no_text(tmp_path: Path) -> None:
    files = {
        "a.py": b"x = 1\r\ny = 2\r\n",
        "pkg/b.py": "é = 'ü'\n".encode(),
        "pkg/latin.py": b"x = '\xe9'\n",
        "pkg/binary.py": b"x\0y\n",
        "blank.py": b" \n\n",
        "long.py": b"x = 1\n" * 100,
        "site-packages/c.py": b"z = 1\n",
        "notes.txt": b"hello\n",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.py").mkdir()
    folder = read_folder(TextFolder(path=str(tmp_path), max_bytes=200))
    found = folder.documents
    assert [(d.name, d.text) for d in found] == [("a.py", "x = 1\ny = 2\n"), ("pkg/b.py", "é = 'ü'\n")]
    assert found[1].headed == "# file: pkg/b.py\né = 'ü'\n"
    assert [(entry.name, entry.reason) for entry in folder.left_out] == [
        ("blank.py", "empty"),
        ("long.py", "600 bytes, above the limit of 200"),
        ("pkg/binary.py", "binary (holds a zero byte)"),
        ("pkg/latin.py", "not UTF-8 (byte 5)"),
    ]
    split = TextFolder(path=str(tmp_path), max_bytes=200).split()
    assert split.facts["files_left_out"] == {"empty": 1, "above 200 bytes": 1, "binary": 1, "not UTF-8": 1}


def test_reading_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; give an existing folder"):
        read_folder(TextFolder(path=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="no text file under"):
        read_folder(TextFolder(path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"held_out is 1\.0"):
        TextFolder(path="x", held_out=1.0)
    assert TextFolder(path=STANDARD_LIBRARY).root.is_dir()


def test_a_folder_without_text_says_what_it_holds(tmp_path: Path) -> None:
    def refused(message: str, **settings: Any) -> None:
        with pytest.raises(ValueError, match=message):
            read_folder(TextFolder(path=str(tmp_path), **settings))

    refused(r"no text file under .* matches '\*\*/\*\.py': it holds no files")
    (tmp_path / "long.md").write_text("word " * 100)
    (tmp_path / "README").write_text("hello\n")
    refused(r"matches '\*\*/\*\.py'; it holds 2 files: ")
    refused(r"matches '\*\.txt' or '\*\.rst'; it holds 2 files", pattern=("*.txt", "*.rst"))
    refused(r"1 file left out: 1 above 200 bytes \(long\.md\); raise `max_bytes`", pattern="*.md", max_bytes=200)
    for pattern in ("", "/etc/*", "../*.py", "**.py"):
        with pytest.raises(ValueError, match="expected a glob below the folder"):
            TextFolder(path=str(tmp_path), pattern=pattern)


def test_several_patterns_and_excluded_names(tmp_path: Path) -> None:
    for name in ("a.md", "sub/b.txt", "sub/c.py", ".git/d.md", ".hidden.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    folder = TextFolder(path=str(tmp_path), pattern=("**/*.md", "**/*.txt", "*.md"), exclude=(".*",))
    assert [d.name for d in read_folder(folder).documents] == ["a.md", "sub/b.txt"]
    without = TextFolder(path=str(tmp_path), pattern="**/*.*", exclude=(".*", "sub/", "a.m/"))
    assert [d.name for d in read_folder(without).documents] == ["a.md"]


def test_more_than_memory_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_MAX_TOTAL_BYTES", 9)
    (tmp_path / "a.py").write_text("x = 1\n")
    assert read_folder(TextFolder(path=str(tmp_path))).documents
    (tmp_path / "b.py").write_text("y = 1\n")
    with pytest.raises(ValueError, match="2 files of 12 bytes match, more than the 9 that are read at once"):
        read_folder(TextFolder(path=str(tmp_path)))


def test_a_name_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.py")).write_text("x = 1\n")
        (tmp_path / os.fsdecode(b"no\xe9.py")).write_bytes(b"\xe9")
    except OSError:
        pytest.skip("this file system refuses such names")
    (tmp_path / "plain.py").write_text("y = 1\n")
    split = TextFolder(path=str(tmp_path), held_out=0.5).split()
    assert {d.name for d in (*split.train, *split.held_out)} == {"caf\\xe9.py", "plain.py"}
    assert [(entry.name, entry.reason) for entry in split.left_out] == [("no\\xe9.py", "not UTF-8 (byte 0)")]


def test_a_folder_that_may_not_be_entered_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.py").write_text("x = 1\n")
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = read_folder(TextFolder(path=str(tmp_path)))
    assert [(entry.name, entry.reason) for entry in found.left_out] == [("closed", "permission denied")]


def test_paths_are_made_absolute_and_home_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.py").write_text("x = 1\n")
    for path in ("text", "~/text", "./text"):
        folder = TextFolder(path=path)
        assert read_folder(folder).documents[0].name == "a.py"
        assert folder.absolute().path == str(tmp_path / "text")
    assert TextFolder(path=STANDARD_LIBRARY).absolute().path == STANDARD_LIBRARY


def test_one_file_is_cut(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("".join(f"Chapter {n}.\n\nAnd so on, {n} times.\n\n" for n in range(100)))
    split = TextFolder(path=str(book), held_out=0.1).split()
    (head,), (tail,) = split.train, split.held_out
    assert head.name == tail.name == "book.txt" and head.text + tail.text == book.read_text()
    assert 0.08 < len(tail.text) / len(book.read_text()) < 0.13 and head.text.endswith("\n\n")
    line = head.text.count("\n") + 1
    assert f"of book.txt, from line {line} on, is held out" in split.note and split.facts["note"] == split.note
    assert split_folder([head, Document(name="copy", text=head.text)], 0.1).copies == 1
    for text in ("ab", "x" * 1000, "a\n" * 3, "\n\n\nab", "x" + "\n" * 99 + "y" + "\n" * 999):
        (head,), (tail,) = (side for side in _sides([Document(name="a", text=text)]))
        assert head.text + tail.text == text and head.text and tail.text.strip()
    assert split_folder([head], 0.0).held_out == []


def _sides(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    split = split_folder(documents, 0.1)
    return split.train, split.held_out


def test_of_few_files_one_is_held_out() -> None:
    train, held = _names(False, 3, 0.1), _names(True, 2, 0.1)
    split = split_folder([_document(name, _lines(i, 10 + 90 * (i == 0))) for i, name in enumerate(train)], 0.1)
    assert len(split.held_out) == 1 and split.held_out[0].name in train[1:], "never the one that is most of the text"
    assert "few files" in split.note and split.held_out[0].name in split.note
    both = split_folder([_document(held[0], _lines(1, 9)), _document(held[1], _lines(2, 50))], 0.1)
    assert [d.name for d in both.train] == [held[1]] and "the longest, is trained on" in both.note
    usual = [_document(name, _lines(i)) for i, name in enumerate([*train, *held])]
    assert split_folder(usual, 0.1) == split_documents(usual, 0.1)


def test_the_split_depends_on_the_name_alone() -> None:
    # Fixed for ever: a trained model's held-out files must stay the same ones.
    names = ("os.py", "json/decoder.py", "ast.py", "email/message.py")
    assert [is_held_out(name, 0.5) for name in names] == [False, True, False, False]
    names = [f"pkg/m{i}.py" for i in range(2000)]
    held = {n for n in names if is_held_out(n, 0.1)}
    assert 150 < len(held) < 250
    assert held <= {n for n in names if is_held_out(n, 0.2)}  # a larger part takes more files, never other ones
    assert not any(is_held_out(n, 0.0) for n in names)


@settings(deadline=None, max_examples=30)
@given(st.randoms(use_true_random=False), st.integers(2, 30))
def test_splits_are_disjoint_complete_and_independent_of_order(rng: random.Random, count: int) -> None:
    documents = [_document(f"m{i}.py", _lines(i)) for i in range(count)]
    split = split_documents(documents, 0.3)
    train, held = {d.name for d in split.train}, {d.name for d in split.held_out}
    assert not train & held and train | held == {d.name for d in documents}
    assert all(is_held_out(name, 0.3) == (name in held) for name in train | held)
    rng.shuffle(documents)
    assert split_documents(documents, 0.3) == split


def test_equal_texts_stay_on_the_held_out_side_only() -> None:
    held, train = _names(True, 1)[0], _names(False, 3)
    same = _lines(1)
    spaced = [line + "  " for line in same]
    documents = [
        _document(train[0], same),
        _document(train[1], [*spaced[:5], "", *spaced[5:]]),
        _document(held, same),
        _document(train[2], _lines(2)),
    ]
    split = split_documents(documents, 0.3)
    assert [d.name for d in split.held_out] == [held]
    assert [d.name for d in split.train] == [train[2]]
    assert (split.copies, split.near_copies) == (2, 0)
    assert content_hash("a\n\nb  \n") == content_hash("a\nb") != content_hash("a\n b")


@pytest.mark.parametrize(("kept_lines", "left_out"), [(10, False), (32, True)])
def test_near_copies_are_held_out_of_both(kept_lines: int, left_out: bool) -> None:
    """Of 40 lines the training file repeats some, indented and with a line in between further down."""
    held, train = _names(True, 1)[0], _names(False, 1)[0]
    original = _lines(1)
    copy = ["    " + line for line in original[:kept_lines]] + _lines(2)
    split = split_documents([_document(held, original), _document(train, copy)], 0.3)
    assert [d.name for d in split.train] == [train]
    assert [d.name for d in split.held_out] == ([] if left_out else [held])
    assert split.near_copies == left_out


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["\n".join(_lines(i)) for i in range(5)], 300, SPECIAL_TOKENS)


DOCUMENTS = [
    _document("top.py", ["a = '<|endoftext|>'"]),
    *(_document(f"pkg/m{i}.py", _lines(i, 5)) for i in range(300)),
    _document("other/x/y.py", ["é = 1"]),
]


def test_token_files_hold_the_documents(tokenizer: Tokenizer, tmp_path: Path) -> None:
    corpus = TokenCorpus.build(DOCUMENTS, tokenizer, tmp_path / "deep" / "train.bin")
    end = tokenizer.eos_ids[0]
    for i, document in enumerate(DOCUMENTS):
        ids = corpus.document(i).tolist()
        assert ids.count(end) == 1 and ids[-1] == end  # the one in the text stays text
        assert tokenizer.decode(ids[:-1]) == document.headed
    assert corpus.num_documents == len(DOCUMENTS) and len(corpus) == len(corpus.ids)
    assert corpus.num_bytes == sum(len(d.headed.encode()) for d in DOCUMENTS)
    members = [sorted(corpus.names[i] for i in group) for group in corpus.groups]
    assert members == [["top.py"], ["other/x/y.py"], sorted(d.name for d in DOCUMENTS[1:-1])]


def test_imports_are_those_of_the_package(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = {
        "pkg/__init__.py": "from .core import run\n",
        "pkg/core.py": "import os\nfrom pkg import util\nfrom . import other\n",
        "pkg/util.py": "x = 1\n",
        "pkg/sub/util.py": "from ..core import run\n",
        "other/core.py": "import pkg.core\n",
    }
    documents = [Document(name=name, text=text) for name, text in texts.items()]
    corpus = TokenCorpus.build(documents, tokenizer, tmp_path / "train.bin")
    assert corpus.imports == [[1], [0, 2], [], [1], []]
    index = tmp_path / "train.json"
    info = json.loads(index.read_text())
    del info["imports"]
    index.write_text(json.dumps(info))
    assert TokenCorpus.build(documents, tokenizer, tmp_path / "train.bin").imports == corpus.imports, (
        "of an old version"
    )


def test_token_files_are_reused_for_the_same_data_only(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    first = TokenCorpus.build(DOCUMENTS, tokenizer, path)
    written = path.stat().st_mtime_ns
    assert TokenCorpus.build(DOCUMENTS, tokenizer, path).data_hash == first.data_hash
    assert path.stat().st_mtime_ns == written
    changed = [*DOCUMENTS[:-1], _document("other/x/y.py", ["é = 2"])]
    second = TokenCorpus.build(changed, tokenizer, path)
    assert second.data_hash != first.data_hash
    other = train_bpe(["x"], 300)
    assert TokenCorpus.build(changed, other, path).data_hash != second.data_hash


@pytest.mark.parametrize("damage", ["no index", "cut index", "no tokens", "cut tokens", "index of another kind"])
def test_half_written_token_files_are_made_again(damage: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    whole = TokenCorpus.build(DOCUMENTS, tokenizer, path).ids.copy()
    index = path.with_suffix(".json")
    if damage == "no index":
        index.unlink()
    elif damage == "cut index":
        index.write_text(index.read_text()[:100])
    elif damage == "no tokens":
        path.unlink()
    elif damage == "cut tokens":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        index.write_text(json.dumps({"names": []}))
    assert np.array_equal(TokenCorpus.build(DOCUMENTS, tokenizer, path).ids, whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.bin", "train.json"]


def test_a_full_disk_is_said_and_leaves_nothing(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("indexshare.data.corpus.os.replace", full)
    with pytest.raises(OSError, match=r"could not write .*train\.bin: No space left on device; free some space"):
        TokenCorpus.build([Document(name="a.py", text="x = 1\n")], tokenizer, tmp_path / "train.bin")
    assert not list(tmp_path.iterdir())


def test_no_documents_is_an_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="change `held_out`"):
        TokenCorpus.build([], tokenizer, tmp_path / "train.bin")
