"""Damaged files: JSON with one to three structured changes, or with its bytes broken. Seeded by name and number."""

import codecs
import json
import random
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
SECONDS = 10.0  # no reading of a small file takes longer, however busy the machine is
_TWIN = "\0twin"  # ends a key that is to be written without it: two keys of one name
_RAW = "\0raw:"  # begins a text that is to be written without quotes
_BYTES = (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0", b"]", b"{", b",", b'"')
_NAMES = ("type", "content", "id", "rope_type", "kind", "shape", "dtype", "vocab", "", "x", "\ud800", "a\nb", "\x1b[2J")


def odd_value(rng: random.Random) -> Any:
    """Something that rarely belongs where it is put."""
    return rng.choice(
        [
            None, True, False, 0, 1, -1, 2, 3, 4, 7, 64, 0.5, 1.0, -0.0, 1e308, 5e-324, float("nan"), float("inf"),
            float("-inf"), 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30,
            _RAW + "1e400", _RAW + "-0", _RAW + "1" + "0" * 5000, _RAW + "[" * 3000 + "]" * 3000, _RAW + "1.",
            "", "x", "1", "null", "True", "full", "dense", "FSFS", "yarn", "default", "bfloat16", "F32", "F8_E8M0",
            "BPE", "ByteLevel", "fp8", "\ud800", "\0", "\n", "é" * 50, "a" * 2000, "<|user|>", "▁",
            [], [None], [[]], [0], [1, 2], [2, 1], [-1], [2**63, 0], ["full"], ["F", "S"], ["x", ["y"]], [[1], [2]],
            list(range(2000)), {}, {"": None}, {"a": {"b": []}}, {"type": "x"}, {"content": "<|user|>"}, [{}],
        ]
    )  # fmt: skip


def mutated(text: str, rng: random.Random, names: tuple[str, ...] = ()) -> bytes:
    """A file of the JSON object `text` after one to three changes; `names` are keys that others may be renamed to."""
    data = json.loads(text)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        data = _change(data, rng, (*_NAMES, *names))
    content = _dump(data).encode("utf-8")
    return broken(content, rng) if rng.random() < 0.15 else content


def broken(content: bytes, rng: random.Random) -> bytes:
    """Bytes cut, flipped, put in, taken out, doubled, or in another encoding."""
    at = rng.randrange(len(content) + 1)
    end = min(at + rng.choice([1, 1, 2, 8, 100]), len(content))
    kind = rng.choice(["cut", "flip", "put", "take", "double", "mark", "utf-16", "empty", "tail"])
    if kind == "flip":
        flipped = bytes(byte ^ (1 << rng.randrange(8)) for byte in content[at:end])
        return content[:at] + flipped + content[end:]
    return {
        "cut": content[:at],
        "put": content[:at] + rng.choice(_BYTES) + content[at:],
        "take": content[:at] + content[end:],
        "double": content[:end] + content[at:],
        "mark": codecs.BOM_UTF8 + content,
        "utf-16": content.decode("utf-8", "replace").encode("utf-16"),
        "empty": rng.choice([b"", b" ", b"null", b"[]", b'"x"', b"3"]),
        "tail": content + rng.choice([b" ", b"\n", b"x", b"\0", content]),
    }[kind]  # fmt: skip


def _change(data: Any, rng: random.Random, names: tuple[str, ...]) -> Any:
    places = [_place(data, rng), _place(data, rng)]
    if places[0] is None or places[1] is None:
        return odd_value(rng)
    (owner, key), (other, elsewhere) = places
    kind = rng.choice(["odd", "odd", "odd", "number", "delete", "rename", "twin", "swap", "copy", "wrap", "add", "add"])
    value = owner[key]
    if kind == "number" and isinstance(value, int | float) and not isinstance(value, bool):
        owner[key] = rng.choice(
            [value + 1, value - 1, -value, value * 2, value * 10**9, str(value), float(value), [value]]
        )
    elif kind == "delete":
        del owner[key]
    elif kind in ("rename", "twin", "add") and isinstance(owner, dict):
        name = key + _TWIN if kind == "twin" else rng.choice([key[:-1], key + "s", key.upper(), *names])
        owner[name] = owner.pop(key) if kind == "rename" else rng.choice([value, odd_value(rng)])
    elif kind == "swap":
        owner[key], other[elsewhere] = other[elsewhere], value
    elif kind == "copy":
        other[elsewhere] = json.loads(json.dumps(value))
    elif kind == "wrap":
        owner[key] = rng.choice([[value], {"x": value}, [value, value], str(value)])
    else:
        owner[key] = odd_value(rng)
    return data


def _place(data: Any, rng: random.Random) -> tuple[Any, Any] | None:
    """A container within the data, and a key or an index in it; shallow places come more often."""
    found = None
    while isinstance(data, dict | list) and data and (found is None or rng.random() < 0.6):
        key = rng.choice(list(data)) if isinstance(data, dict) else rng.randrange(len(data))
        found, data = (data, key), data[key]
    return found


def _dump(data: Any) -> str:
    """JSON with two keys of one name, numbers that Python would not write, and what else is marked."""
    try:
        text = json.dumps(data)
    except (RecursionError, ValueError):  # a swap put a container into itself
        return "{"
    text = text.replace("\\u0000twin", "")
    return re.sub(r'"\\u0000raw:([^"]*)"', r"\1", text)


class TookTooLong(BaseException):
    """Nothing under test may take this for an error of its own."""


@contextmanager
def deadline(seconds: float = SECONDS) -> Iterator[None]:
    """Raise TookTooLong in the block when it takes longer; the main thread's only."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TookTooLong(f"still reading after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read_or_refused(read: Callable[[], T], file: str, lines: int = 1) -> T | None:
    """What was read, or None where it was refused as it should be: by a ValueError of printable `lines` with `file`."""
    try:
        with deadline():
            return read()
    except ValueError as error:
        refusal = error
    assert type(refusal) is ValueError, f"a raw {type(refusal).__name__}: {refusal}"
    text = str(refusal)
    clear = text.replace("\n", "", lines - 1).isprintable() and len(text) < 1500 * lines
    assert file in text and clear, text[:3000]
    return None
