"""Reading a source tree and the place of the cursor: every odd file is listed, none stops the rest."""

import os
import random
from pathlib import Path

import pytest

from indexshare.repository.source_tree import SourceTree, read_cursor, read_tree
from indexshare.text.files import read_text


def write(root: Path, name: str, text: str | bytes = "x = 1\n") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def names(tree: SourceTree) -> list[str]:
    return [file.name for file in tree.files]


def reasons(tree: SourceTree) -> dict[str, str]:
    return {entry.name: entry.reason for entry in tree.skipped}


def test_files_come_sorted_with_posix_names(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.py", "a/b/c.txt"):
        write(tmp_path, name)
    assert names(read_tree(tmp_path)) == ["a/b/c.txt", "a/z.py", "b.py"]


def test_a_package_names_its_files_as_they_are_imported(tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    write(package, "__init__.py", "import os\n")
    target = write(package, "sub/mod.py")
    tree = read_tree(package)
    assert names(tree) == ["pkg/__init__.py", "pkg/sub/mod.py"]
    assert tree.name_of(target) == "pkg/sub/mod.py"
    assert tree.name_of(tmp_path / "elsewhere.py") == "elsewhere.py"
    assert tree.name_of(write(tmp_path / "other", "pkg/sub/mod.py")) == "mod.py"


def test_a_file_outside_is_not_taken_for_one_of_the_same_name(tmp_path: Path) -> None:
    write(tmp_path, "tree/a.py")
    outside = write(tmp_path, "a.py")
    assert read_tree(tmp_path / "tree").name_of(outside) == outside.resolve().as_posix()


def test_relative_roots_and_the_current_folder_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "pkg/__init__.py", "import os\n")
    write(tmp_path, "pkg/a.py")
    monkeypatch.chdir(tmp_path)
    assert names(read_tree(Path("pkg"))) == ["pkg/__init__.py", "pkg/a.py"]
    monkeypatch.chdir(tmp_path / "pkg")
    assert names(read_tree(Path("."))) == ["pkg/__init__.py", "pkg/a.py"]
    assert names(read_tree(Path(".."))) == ["pkg/__init__.py", "pkg/a.py"]


def test_what_is_not_text_is_skipped_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path, "good.py")
    write(tmp_path, "image.png", b"\x89PNG\0\0")
    write(tmp_path, "latin.py", b"s = '\xe9'\n")
    write(tmp_path, "empty.py", " \n")
    write(tmp_path, "huge.py", "x\n" * 100)
    write(tmp_path, ".hidden.py")
    write(tmp_path, ".git/config")
    write(tmp_path, "__pycache__/a.pyc")
    os.mkfifo(tmp_path / "pipe.py")
    tree = read_tree(tmp_path, max_file_bytes=100)
    assert names(tree) == ["good.py"]
    assert reasons(tree) == {
        ".git": "hidden folder",
        ".hidden.py": "hidden file",
        "__pycache__": "generated or installed files",
        "empty.py": "empty",
        "huge.py": "200 bytes, above the limit of 100",
        "image.png": "binary (holds a zero byte)",
        "latin.py": "not UTF-8 (byte 5)",
        "pipe.py": "not a regular file",
    }
    needs_attention = [entry.name for entry in tree.skipped if not entry.routine]
    assert needs_attention == ["huge.py", "image.png", "latin.py", "pipe.py"]


def test_links_are_followed_only_to_new_files_inside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, "real.py")
    outside = write(tmp_path, "outside.py")
    (root / "a_link.py").symlink_to(root / "real.py")
    (root / "away.py").symlink_to(outside)
    (root / "broken.py").symlink_to(root / "nothing")
    (root / "loop.py").symlink_to(root / "loop.py")
    (root / "up").symlink_to(root)
    tree = read_tree(root)
    assert names(tree) == ["real.py"]
    assert reasons(tree)["a_link.py"] == "link to a file that is already taken"
    assert reasons(tree)["away.py"] == "link that leads out of the folder"
    assert reasons(tree)["broken.py"] == "no such file or directory"
    assert "loop" in reasons(tree)["loop.py"] or "symbolic" in reasons(tree)["loop.py"]
    assert reasons(tree)["up"] == "link to a folder, not followed"


def test_refused_files_and_folders_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests may run as an administrator, to whom nothing is refused: refuse on the system's behalf.
    write(tmp_path, "good.py")
    secret = write(tmp_path, "secret.py")
    closed = write(tmp_path, "closed/inner.py").parent
    read_bytes, scandir = Path.read_bytes, os.scandir

    def no_reading(path: Path) -> bytes:
        if path == secret:
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    def no_listing(path: str) -> object:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(Path, "read_bytes", no_reading)
    monkeypatch.setattr(os, "scandir", no_listing)
    tree = read_tree(tmp_path)
    assert names(tree) == ["good.py"]
    assert reasons(tree) == {"closed": "permission denied", "secret.py": "permission denied"}


def test_undecodable_names_are_displayable(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"bad\xff.py")).write_text("x = 1\n")
    except OSError:
        pytest.skip("this file system refuses such names")
    tree = read_tree(tmp_path)
    assert names(tree) == ["bad\\xff.py"]
    tree.files[0].name.encode("utf-8")


def test_text_is_normalised(tmp_path: Path) -> None:
    write(tmp_path, "a.py", b"\xef\xbb\xbfx = 1\r\ny = 2\rz\n\n\n")
    assert read_tree(tmp_path).files[0].text == "x = 1\ny = 2\nz\n"


def test_reading_stops_at_the_byte_limit_of_the_tree(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path, f"{number}.py", "x" * 60 + "\n")
    tree = read_tree(tmp_path, max_tree_bytes=100)
    assert names(tree) == ["0.py", "1.py"]
    assert reasons(tree)["2.py"] == "100 bytes of text were read before it"


def test_a_large_folder_is_read_from_the_file_outwards_and_no_further_than_the_limit(tmp_path: Path) -> None:
    for folder in ("a", "m/inner", "m", "z"):
        for n in range(5):
            write(tmp_path, f"{folder}/f{n}.py")
    seen = list[tuple[str, str]]()
    near = tmp_path / "m" / "inner"
    tree = read_tree(tmp_path, max_tree_files=10, near=near, progress=lambda doing, what: seen.append((doing, what)))
    assert names(tree) == [*(f"m/f{n}.py" for n in range(5)), *(f"m/inner/f{n}.py" for n in range(5))]
    (entry,) = [entry for entry in tree.skipped if not entry.routine]
    assert entry.reason == "more than 10 files or folders; the others were not looked at, name a smaller folder"
    assert [what for doing, what in seen if doing == "looking into"] == [str(near), str(near.parent)]
    assert [what for doing, what in seen if doing == "reading"][:2] == ["m/inner/f0.py", "m/inner/f1.py"]
    everything = read_tree(tmp_path, near=near)
    assert len(everything.files) == 20 and read_tree(tmp_path) == everything, "the order of reading does not show"
    assert read_tree(tmp_path, near=tmp_path.parent) == everything


def test_folders_without_files_count_too(tmp_path: Path) -> None:
    for n in range(30):
        (tmp_path / f"d{n}" / "e").mkdir(parents=True)
    write(tmp_path, "a.py")
    looked = list[str]()
    tree = read_tree(tmp_path, max_tree_files=7, progress=lambda doing, what: looked.append(doing))
    assert looked.count("looking into") == 7 and [entry.kind for entry in tree.skipped] == ["too many files"]


def test_a_folder_without_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no text files$"):
        read_tree(tmp_path)
    write(tmp_path, "a.bin", b"\0")
    write(tmp_path, "b.bin", b"\0")
    with pytest.raises(ValueError, match=r"no text files: a\.bin: binary .* and 1 more"):
        read_tree(tmp_path)
    tree = read_tree(tmp_path, may_be_empty=True)
    assert (names(tree), len(tree.skipped)) == ([], 2)


def test_a_missing_folder_and_a_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        read_tree(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="is a file"):
        read_tree(write(tmp_path, "a.py"))


@pytest.mark.parametrize(
    ("suffix", "before", "line", "column"),
    [
        ("", "ab\ncde", 2, 4),
        (":1", "ab", 1, 3),
        (":2", "ab\ncde", 2, 4),
        (":3", "ab\ncde\n", 3, 1),
        (":2:1", "ab\n", 2, 1),
        (":2:3", "ab\ncd", 2, 3),
        (":2:4", "ab\ncde", 2, 4),
    ],
)
def test_the_cursor_cuts_the_file(tmp_path: Path, suffix: str, before: str, line: int, column: int) -> None:
    path = write(tmp_path, "a.py", "ab\ncde\n")
    cursor = read_cursor(f"{path}{suffix}")
    assert (cursor.before, cursor.line, cursor.column, cursor.path) == (before, line, column, path)
    assert cursor.before + cursor.after == "ab\ncde\n"


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (":0", "line 0 is outside .*a.py, which has lines 1 to 3"),
        (":4", "line 4 is outside"),
        (":2:0", "column 0 is outside line 2 .* columns 1 to 4"),
        (":2:5", "column 5 is outside"),
    ],
)
def test_a_cursor_outside_the_file_is_an_error(tmp_path: Path, suffix: str, message: str) -> None:
    path = write(tmp_path, "a.py", "ab\ncde\n")
    with pytest.raises(ValueError, match=message):
        read_cursor(f"{path}{suffix}")


def test_files_that_cannot_be_completed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.py does not exist"):
        read_cursor(str(tmp_path / "nothing.py:3"))
    with pytest.raises(ValueError, match="cannot be completed: binary"):
        read_cursor(str(write(tmp_path, "a.bin", b"\0\1")))
    with pytest.raises(ValueError, match="not a regular file"):
        read_cursor(str(tmp_path))
    with pytest.raises(ValueError, match="no name"):
        read_cursor("")


def test_a_name_with_a_colon_is_taken_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, "a.py:2", "one\ntwo\n")
    assert read_cursor(str(path)).before == "one\ntwo"
    assert read_cursor(f"{path}:1").before == "one"


def test_random_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    draw = random.Random(0)
    for number in range(200):
        path = write(tmp_path, f"{number}.py", draw.randbytes(draw.randrange(40)))
        try:
            text = read_text(path)
        except ValueError:
            continue
        assert "\r" not in text
        assert text.encode("utf-8").decode("utf-8") == text
