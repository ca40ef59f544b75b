"""Installed packages as text: what counts, the byte limit, licences, whole packages held out, and copies across."""

import json
import random
from dataclasses import asdict, replace
from importlib.metadata import distribution
from pathlib import Path

import pytest

from indexshare.data import packages
from indexshare.data.corpus import TextFolder
from indexshare.data.packages import Package, PackageText, is_permissive, licence_of, read_package, text_from_record
from indexshare.data.splitting import is_held_out, package_of


def body(seed: int, count: int = 40) -> str:
    rng = random.Random(seed)
    return "".join(f"value_{rng.randrange(10**6)} = compute({rng.randrange(10**6)})\n" for _ in range(count))


def install(site: Path, name: str, files: dict[str, str], metadata: str = "License-Expression: MIT\n") -> None:
    """A distribution as pip leaves it: files, METADATA and RECORD."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{metadata}")
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in ["../../bin/tool.py", *files]))


def add(site: Path, name: str, path: str, text: str) -> None:
    """One more file of a distribution that is there."""
    (site / path).parent.mkdir(parents=True, exist_ok=True)
    (site / path).write_text(text)
    record = site / f"{name.replace('-', '_') if name != 'be-ta' else 'Be_ta'}-1.0.dist-info" / "RECORD"
    record.write_text(record.read_text() + f"{path},,\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    files = {f"alpha/m{i}.py": body(i) for i in range(12)}
    extra = {"alpha/tests/test_m0.py": body(50), "alpha/data.txt": "no", "alpha_extra.py": body(51)}
    install(folder, "alpha", files | extra)
    # The second package carries a copy of one file of the whole one, in a folder that is not called vendored.
    install(folder, "Be-ta", {f"be_ta/sub{i % 3}/m{i}.py": body(100 + i) for i in range(9)} | {"be_ta/g.py": body(200)})
    install(folder, "gamma", {f"gamma/m{i}.py": body(200 + i) for i in range(4)})
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def text(site: Path, tmp_path: Path) -> PackageText:
    base = tmp_path / "base"
    base.mkdir()
    for i in range(20):
        (base / f"top{i}.py").write_text(body(300 + i))
    return PackageText(
        base=TextFolder(path=str(base), held_out=0.3),
        packages=(Package(name="alpha"), Package(name="be-ta")),
        whole=(Package(name="gamma"),),
    )


def test_a_package_is_one_repository(site: Path) -> None:
    documents, record, _ = read_package(
        Package(name="alpha"), max_bytes=10**6, package_bytes=10**6, exclude=("tests", "__pycache__")
    )
    names = [document.name for document in documents]
    assert names == sorted([*(f"alpha/m{i}.py" for i in range(12)), "alpha/alpha_extra.py"])
    assert {package_of(name) for name in names} == {"alpha"}
    assert (record.name, record.version, record.licence, record.files) == ("alpha", "1.0", "MIT", 13)
    assert record.num_bytes == sum(len(document.text) for document in documents)
    (only,), *_ = read_package(Package(name="alpha", folders=("alpha/m3.py",)), max_bytes=10**6, package_bytes=10**6)
    assert (only.name, only.text) == ("alpha/m3.py", body(3))


def test_the_limit_takes_whole_folders_in_a_fixed_order(site: Path) -> None:
    size = len(body(100))
    taken = [
        {d.name for d in read_package(Package(name="be-ta"), max_bytes=10**6, package_bytes=limit)[0]}
        for limit in (4 * size, 7 * size, 10**6)
    ]
    assert taken[0] < taken[1] < taken[2] and len(taken[2]) == 10
    folders = [sum(f"sub{i}/" in name for name in taken[0]) for i in range(3)]
    assert 3 in folders, "the first folder is complete before the next begins"
    with pytest.raises(ValueError, match="no Python file of 'be-ta' counts"):
        read_package(Package(name="be-ta"), max_bytes=10**6, package_bytes=10)


def test_split_by_file_and_by_package_without_leaks(text: PackageText) -> None:
    split = text.split()
    train, held = {d.name for d in split.train}, {d.name for d in split.held_out}
    assert not train & held
    assert {f"gamma/m{i}.py" for i in range(4)} <= held, "whole, its copy in another package notwithstanding"
    assert not any(name.startswith("gamma/") for name in train)
    assert all(is_held_out(name, 0.3) for name in held if not name.startswith("gamma/"))
    assert any(name.startswith("alpha/") for name in held) and any(name.startswith("alpha/") for name in train)
    assert "be_ta/g.py" not in train | held and (split.copies, split.vendored) == (1, 0)
    assert [(p.name, p.held_out) for p in split.packages] == [("alpha", False), ("be-ta", False), ("gamma", True)]
    facts = split.facts
    assert json.loads(json.dumps(facts)) == facts and facts["packages"][2]["licence"] == "MIT"


def test_a_rewritten_copy_is_found_by_its_names(text: PackageText, site: Path) -> None:
    """Not a line is the same; the folder's name, or the names that the files define, tell."""
    parts = ("reader", "writer", "parser", "buffer", "header", "socket", "stream", "column")
    original = "".join(f"def open_{part}_slowly(queue):\n    return queue.{part}\n\n" for part in parts)
    rewritten = "# after gamma\n" + "".join(f"def open_{p}_slowly(q: Q) -> R:\n    return q[{p!r}]\n\n" for p in parts)
    others = rewritten.replace("_slowly", "_quickly")
    for package, name, body_of in (
        ("gamma", "gamma/slow.py", original),
        ("be-ta", "be_ta/_gamma/m1.py", body(900)),
        ("be-ta", "be_ta/slow.py", rewritten),
        ("be-ta", "be_ta/quick.py", others),
        ("be-ta", "be_ta/silent.py", rewritten.replace("gamma", "nobody").replace("_slowly", "_other")),
    ):
        add(site, package, name, body_of)
    split = replace(text, base=replace(text.base, held_out=0.0)).split()
    train = {d.name for d in split.train}
    assert {"be_ta/quick.py", "be_ta/silent.py"} <= train
    assert not {"be_ta/_gamma/m1.py", "be_ta/slow.py"} & train and split.named == 2
    assert split.facts["copies_by_name_removed"] == 2


def test_tests_prose_and_descriptions_where_they_are_wanted(text: PackageText, site: Path) -> None:
    add(site, "alpha", "alpha/guide.md", "# How to use alpha\n")
    add(site, "gamma", "gamma/guide.md", "# How to use gamma\n")
    metadata = site / "alpha-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text() + "\nAlpha does what nobody asked for.\n")
    base = replace(text.base, held_out=0.0)
    plain = {d.name for d in replace(text, base=base).split().train}
    assert not any(name.endswith(".md") for name in plain) and "alpha/tests/test_m0.py" not in plain
    packages = (Package(name="alpha", tests=True), Package(name="be-ta"))
    wide = replace(text, base=base, packages=packages, suffixes=(".py", ".md"), descriptions=True)
    split = wide.split()
    found = {d.name: d.text for d in split.train}
    assert set(found) - plain == {"alpha/tests/test_m0.py", "alpha/guide.md", "alpha/README.md"}
    assert found["alpha/README.md"] == "Alpha does what nobody asked for.\n"
    assert {d.name for d in split.held_out} == {f"gamma/m{i}.py" for i in range(4)}, "held out whole: source alone"
    assert text_from_record(json.loads(json.dumps(asdict(wide)))) == wide


def test_parts_of_a_whole_package_in_training_are_copies(text: PackageText, site: Path) -> None:
    """A file that repeats 30 lines of a held-out one and adds 10 goes; one that repeats 10 and adds 30 stays."""
    lines, others = body(201).splitlines(True), body(400).splitlines(True)
    copied = next(i for i in range(99) if not is_held_out(f"top{i}x.py", 0.3))
    quoted = next(i for i in range(99) if not is_held_out(f"top{i}y.py", 0.3))
    (text.base.root / f"top{copied}x.py").write_text("".join(lines[:30] + others[:10]))
    (text.base.root / f"top{quoted}y.py").write_text("".join(others[:30] + lines[30:]))
    split = text.split()
    train = {d.name for d in split.train}
    assert split.vendored == 1 and f"top{copied}x.py" not in train and f"top{quoted}y.py" in train
    assert "gamma/m1.py" in {d.name for d in split.held_out}


def test_the_same_every_time_and_through_the_record(text: PackageText) -> None:
    record = json.loads(json.dumps(asdict(text)))
    assert text_from_record(record) == text
    assert text_from_record(record).split() == text.split()
    assert text_from_record(json.loads(json.dumps(asdict(text.base)))) == text.base
    with pytest.raises(ValueError, match=r"cannot be read: .*give a folder with --text"):
        text_from_record(record | {"later": 1})


def test_what_is_missing_is_named_with_its_command(text: PackageText) -> None:
    wanted = replace(text, packages=(Package(name="alpha"), Package(name="no-such-a"), Package(name="no-such-b")))
    with pytest.raises(
        ValueError,
        match=r"not installed: no-such-a, no-such-b; run: pip install -c constraints\.txt no-such-a no-such-b",
    ):
        wanted.split()


def test_mistakes(text: PackageText, site: Path) -> None:
    install(site, "closed", {"closed/a.py": body(1)}, "License: All rights reserved\n")
    install(site, "silent", {"silent/a.py": body(1)}, "")
    for name, given in (("closed", "'All rights reserved'"), ("silent", "'nothing'")):
        with pytest.raises(ValueError, match=f"the licence of '{name}' is given as {given}"):
            replace(text, packages=(Package(name=name),)).split()
    with pytest.raises(ValueError, match="each once"):
        replace(text, whole=(Package(name="Alpha"),))
    with pytest.raises(ValueError, match="package_bytes is 0"):
        replace(text, package_bytes=0)
    (text.base.root / "alpha").mkdir()
    (text.base.root / "alpha" / "x.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="'alpha' is also a folder of the base text"):
        text.split()


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("Apache-2.0 AND (MIT OR BSD-3-Clause)", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("MIT AND GPL-3.0-only", False),
        ("MPL-2.0", False),
        ("Proprietary", False),
        ("", False),
    ],
)
def test_licences(licence: str, allowed: bool) -> None:
    assert is_permissive(licence) == allowed


def test_licences_are_found_in_old_and_new_metadata(site: Path) -> None:
    group = "Classifier: License :: OSI Approved"
    old = f"License: some long text\n{group}\n{group} :: BSD License\n"
    install(site, "older", {"older/a.py": body(1)}, old)
    install(site, "oldest", {"oldest/a.py": body(1)}, "License: Apache 2.0\n")
    assert [licence_of(distribution(name)) for name in ("alpha", "older", "oldest")] == [
        "MIT",
        "BSD License",
        "Apache 2.0",
    ]
    assert set(packages.PERMISSIVE) >= {"MIT", "BSD License", "Apache 2.0"}
