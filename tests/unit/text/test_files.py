"""The reader of text: one form of every file, and a reason for every file that is none."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexshare.text import files
from indexshare.text.files import (
    NotText,
    SkippedFile,
    check_can_write,
    decode_text,
    describe_skipped,
    displayable,
    plural,
    read_text,
    replacing,
    take_text,
)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xef\xbb\xbfx = 1\n", "x = 1\n"),
        (b"a\r\nb\rc\n\r\n", "a\nb\nc\n\n"),
        (b"\r\r\n\n", "\n\n\n"),
        ("é\ufeff".encode(), "é\ufeff"),  # only a mark at the very start says nothing
        (b"", ""),
    ],
)
def test_one_form_of_every_text(data: bytes, text: str) -> None:
    assert decode_text(data) == text


@given(st.text())
def test_reading_twice_changes_nothing_more(text: str) -> None:
    text = text.encode("utf-8", "replace").decode("utf-8").lstrip("\ufeff")
    once = decode_text(text.encode("utf-8"))
    assert "\r" not in once and decode_text(once.encode("utf-8")) == once


def test_every_refusal_has_a_reason_and_a_kind(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    (tmp_path / "image").write_bytes(b"x" * 9000 + b"\0")
    (tmp_path / "long").write_bytes(b"x" * 20_000)
    (tmp_path / "blank").write_bytes(b" \n\t\n")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    found = {
        name: take_text(tmp_path / name, name, 10_000) for name in ("latin", "image", "long", "blank", "gone", "loop")
    }
    entries = {name: entry for name, entry in found.items() if isinstance(entry, SkippedFile)}
    assert {name: (entry.reason, entry.kind) for name, entry in entries.items() if name != "loop"} == {
        "latin": ("not UTF-8 (byte 3)", "not UTF-8"),
        "image": ("binary (holds a zero byte)", "binary"),
        "long": ("20,000 bytes, above the limit of 10,000", "above 10,000 bytes"),
        "blank": ("empty", "empty"),
        "gone": ("no such file or directory", "no such file or directory"),
    }
    assert entries["loop"].reason
    assert [name for name, entry in entries.items() if entry.routine] == ["blank"]
    with pytest.raises(NotText, match="not a regular file"):
        read_text(tmp_path)


def test_counts_say_what_and_name_a_few() -> None:
    entries = [SkippedFile(name=f"{n}.txt", reason=f"not UTF-8 (byte {n})", kind="not UTF-8") for n in range(4)]
    entries.append(SkippedFile(name="z", reason="permission denied"))
    assert describe_skipped(entries) == (
        "5 files left out: 4 not UTF-8, 1 permission denied (0.txt, 1.txt, 2.txt and 2 more)"
    )
    assert describe_skipped(entries[:1]) == "1 file left out: 1 not UTF-8 (0.txt)"
    assert describe_skipped([]) == ""
    assert [plural(n, "file") for n in (0, 1, 2, 1234)] == ["0 files", "1 file", "2 files", "1,234 files"]


def test_names_that_are_no_text_are_escaped() -> None:
    assert displayable(os.fsdecode(b"caf\xe9.py")) == "caf\\xe9.py"
    assert displayable("café.py") == "café.py"


def test_what_cannot_be_written_is_refused_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_can_write(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
    for file, message in (
        (tmp_path, "is a folder; give the name of a file in it"),
        (tmp_path / "no" / "a.png", r"cannot be written: the folder .*no does not exist; create it first"),
    ):
        with pytest.raises(ValueError, match=message):
            check_can_write(file)

    def read_only(**settings: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", read_only)
    with pytest.raises(ValueError, match=r"a\.png cannot be written: read-only file system; choose another folder"):
        check_can_write(tmp_path / "a.png")


def test_a_file_is_replaced_when_the_new_one_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("before")

    def write(text: str, *, fail: bool) -> None:
        with replacing(file) as temporary:
            assert temporary.suffix == ".csv"
            temporary.write_text(text)
            if fail:
                raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write("half", fail=True)
    assert file.read_text() == "before"
    write("after", fail=False)
    assert file.read_text() == "after" and list(tmp_path.iterdir()) == [file]
