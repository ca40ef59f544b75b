"""What a call says once its disguises are taken off: quotes, variables, encodings, split strings, links, globs.

Nothing is run. Every disguise that is undone gives one more reading of the call, and rules look at all readings.
"""

from __future__ import annotations

import base64
import binascii
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

_MOST = 64  # readings of one call
_LONGEST = 4096  # characters of a reading, or four times the call's: a variable that names itself would grow for ever
_ASSIGNED = re.compile(r"(?:^|[;&|\s])(?:export\s+)?([A-Za-z_]\w*)=(\"[^\"]*\"|'[^']*'|[^\s;&|]*)")
_USED = re.compile(r"\$\{?([A-Za-z_]\w*)\}?")
_ESCAPED = re.compile(r"\\x([0-9a-fA-F]{2})|\\([0-7]{3})|\\u([0-9a-fA-F]{4})")
_CHR = re.compile(r"chr\((\d+)\)")
_ENCODED = re.compile(r"[A-Za-z0-9+/_-]{8,}={0,2}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}){4,}")
_JOINED = re.compile(r"['\"]\s*[+,]?\s*['\"]")
_WORD = re.compile(r"[^\s;&|<>()'\"`=,]+")


def variables(call: str) -> dict[str, str]:
    """Names that a call assigns, and their values."""
    found = {name: value.strip("'\"") for name, value in _ASSIGNED.findall(call)}
    return {name: value for name, value in found.items() if f"${name}" not in value and f"${{{name}}}" not in value}


def views(call: str, known: Mapping[str, str], links: Mapping[str, str], protected: Sequence[str]) -> list[str]:
    """Readings of a call, the call itself first.

    Args:
        call: as it was made.
        known: variables of earlier calls.
        links: names of files that stand for others.
        protected: paths that globs may name.
    """
    found, queue, longest = list[str](), [call], max(_LONGEST, 4 * len(call))
    while queue and len(found) < _MOST:
        text = queue.pop(0)
        if text in found:
            continue
        found.append(text)
        undone = _undone(text, {**known, **variables(text)}, links, protected)
        queue += [new for new in undone if new != text and len(new) <= longest]
    return found


def _undone(text: str, known: Mapping[str, str], links: Mapping[str, str], protected: Sequence[str]) -> Iterator[str]:
    """The text with one kind of disguise taken off, for each kind."""
    yield _USED.sub(lambda match: known.get(match[1], match[0]), text)
    yield _ESCAPED.sub(_character, text)
    yield _CHR.sub(lambda match: f"'{chr(int(match[1]) % 0x110000)}'", text)
    yield _JOINED.sub("", text)
    yield re.sub(r"\\\n|[\\'\"]|\$@|\$\*", "", text)
    yield text.replace("${IFS}", " ").replace("$IFS", " ")
    yield _WORD.sub(lambda match: _path(match[0], links, protected), text)
    for match in _ENCODED.finditer(text):
        yield from _decoded(match[0])
    for match in _HEX.finditer(text):
        yield from _printable(bytes.fromhex(match[0]))
    if re.search(r"\brev\b|\[::-1\]|reversed\(", text):
        yield text[::-1]


def _character(match: re.Match[str]) -> str:
    return chr(int(match[1] or match[3], 16)) if match[1] or match[3] else chr(int(match[2], 8))


def _path(word: str, links: Mapping[str, str], protected: Sequence[str]) -> str:
    """A word as a path: dots resolved, links followed, globs that name something protected replaced by it."""
    plain = posixpath.normpath(word) + ("/" if word.endswith("/") else "") if "/" in word else word
    for name, target in links.items():
        if plain == name or plain.startswith(name.rstrip("/") + "/"):
            plain = target + plain[len(name.rstrip("/")) :]
    if any(sign in plain for sign in "*?[{"):
        for path in protected:
            if any(_names(pattern, path.rstrip("/")) for pattern in _braces(plain)):
                return path
    return plain


def _names(pattern: str, path: str) -> bool:
    """Whether a glob names a path or something below it."""
    depth = path.count("/") + 1
    return fnmatchcase(path, "/".join(pattern.removeprefix("./").split("/")[:depth]))


def _braces(pattern: str) -> list[str]:
    """`a{b,c}` as `ab` and `ac`; the first braces only."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    return [pattern[: match.start()] + part + pattern[match.end() :] for part in match[1].split(",")]


def _decoded(text: str) -> Iterator[str]:
    padded = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        data = base64.b64decode(padded + "=" * (-len(padded) % 4), validate=True)
    except (binascii.Error, ValueError):
        return
    yield from _printable(data)


def _printable(data: bytes) -> Iterator[str]:
    """The bytes as text, where they are one."""
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        return
    if len(text) >= 4 and all(c.isprintable() or c in "\n\t" for c in text):
        yield text
