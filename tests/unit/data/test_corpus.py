"""Corpora: what is read, the split by file and its leaks, and token files that survive a kill."""

import errno
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexshare.data.corpus import (
    STANDARD_LIBRARY,
    Document,
    TextFolder,
    TokenCorpus,
    content_hash,
    is_held_out,
    read_folder,
    split_documents,
)
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
    found = read_folder(TextFolder(path=str(tmp_path), max_bytes=200))
    assert [(d.name, d.text) for d in found] == [("a.py", "x = 1\ny = 2\n"), ("pkg/b.py", "é = 'ü'\n")]
    assert found[1].headed == "# file: pkg/b.py\né = 'ü'\n"


def test_reading_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        read_folder(TextFolder(path=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="no text file under"):
        read_folder(TextFolder(path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"held_out is 1\.0"):
        TextFolder(path="x", held_out=1.0)
    assert TextFolder(path=STANDARD_LIBRARY).root.is_dir()


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
