"""Headers and indexes that no writer makes: refused in one printable line, whatever stands in them."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from indexshare.checkpoint.companions import as_json
from indexshare.checkpoint.tensor_files import INDEX_FILE, read_directory, read_header

ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def file_of(folder: Path, header: bytes, data: bytes = b"\0" * 4) -> Path:
    file = folder / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return file


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"t": ENTRY | {"shape": [1, float("nan")]}}, "NaN is no JSON"),
        ({"t": ENTRY, "__metadata__": {"x": float("inf")}}, "Infinity is no JSON"),
        ({"t": ENTRY, "__metadata__": {"x": 1}}, "__metadata__ is {'x': 1}; expected texts"),
        ({"t": ENTRY, "__metadata__": []}, r"__metadata__ is \[\]; expected texts"),
        ({"t": ENTRY | {"shape": [-0.0]}}, "expected lists of sizes"),
        ({"\ud800": ENTRY}, "surrogates not allowed"),
        ({"t": ENTRY | {"shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}, "expected lists of sizes"),
        ({"t": ENTRY | {"shape": [1] * 65}}, "expected lists of sizes"),
        ({"t": ENTRY | {"shape": [2**63]}}, "expected lists of sizes"),
        ({"a" * 10**5: ENTRY | {"dtype": "F" * 10**5}}, "has dtype 'FFF"),
    ],
)  # fmt: skip
def test_headers(header: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_header(file_of(tmp_path, json.dumps(header).encode()))
    assert len(str(error.value)) < 600 and str(error.value).isprintable()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_headers_are_utf_8(encoding: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the header of .* is damaged"):
        read_header(file_of(tmp_path, json.dumps({"t": ENTRY}).encode(encoding)))


def test_many_names_twice_are_found_at_once(tmp_path: Path) -> None:
    pairs = ",".join(f'"t{i}":0' for i in range(50_000))
    began = time.perf_counter()
    with pytest.raises(ValueError, match="'t0' appears twice"):
        read_header(file_of(tmp_path, f"{{{pairs},{pairs}}}".encode()))
    assert time.perf_counter() - began < 20  # it took hours


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "has no weight_map"),
        ({"t": "\0"}, r"names the shard '\\x00'"),
        ({"t": "a" * 256}, "names the shard 'aaa"),
        ({"t": "\x1b[2J.safetensors"}, r"names the shard '\\x1b"),
        ({"t": ""}, "1 of 1 shards that do not exist"),
    ],
)
def test_indexes(weight_map: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=message) as error:
        read_directory(tmp_path)
    assert str(error.value).isprintable()


def test_half_a_character_in_a_carried_key_can_be_written_again() -> None:
    assert json.loads(as_json({"_name_or_path": "é\ud800"})) == {"_name_or_path": "é\ud800"}
