"""Fresh facts in real code: values of real statements replaced, statements written anew, and others that look alike."""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from indexshare.data.forms.statements import Statement
from indexshare.data.forms.values import Value, near_name, new_literal, new_module, new_name, words_of

_FROM_REAL_TEXT = 0.8  # of the facts for which the text has a statement of the family
_LOOK_ALIKE = 0.6  # of the facts get one more statement that looks like theirs, some of them two
_TRIES = 20
_DEFINED = re.compile(r"^( *)(?:async )?(def|class) (\w+)", re.MULTILINE)
_STATED = re.compile(r"\b([A-Za-z_][\w-]{2,})(?=['\"]?\s*(?::[^=\n'\"]{0,40})?[=:](?!=))")
_TABLE = re.compile(r"^\s*(?:self\.)?([A-Za-z_]\w*)(?:: [^=\n]+)? = \{$", re.MULTILINE)
_CALL = re.compile(r"([A-Za-z_]\w{3,})\($", re.MULTILINE)
_AT_MARGIN = re.compile(r"(?<=\n\n)(?=def |class |@|async def |[A-Za-z_]\w* = )")
_NEAR = 4000  # characters before an entry in which its table or call begins


@dataclass(frozen=True)
class Fact:
    """What a text states: the value of `name` of `owner`, in the file `path`."""

    statement: Statement
    name: str
    owner: str
    path: str
    value: Value

    @property
    def module(self) -> str:
        """The file as an import names it last."""
        return _stem(self.path)

    @property
    def dotted(self) -> str:
        """The file as an import names it."""
        parts = self.path.removesuffix(".py").split("/")
        return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


@dataclass(frozen=True)
class Edit:
    """`text[start:stop]` of a file becomes `new`."""

    file: int
    start: int
    stop: int
    new: str


class Planter:
    """Plants facts in files; `texts` gives what became of them.

    Args:
        paths, texts: of the files.
        rng: makes everything that is new.
    """

    def __init__(self, paths: Sequence[str], texts: Sequence[str], rng: random.Random) -> None:
        self._paths, self._before, self._rng = paths, texts, rng
        self.words = words_of(texts)
        self._edits: list[Edit] = []
        self._taken: set[str] = set()

    @cached_property
    def _stated(self) -> Counter[str]:
        """How often each name is given something in all files."""
        return Counter(name for text in self._before for name in _STATED.findall(text))

    @cached_property
    def _definitions(self) -> list[list[tuple[int, int, str, str]]]:
        """Place, indentation, kind and name of functions and classes, by file."""
        return [[(m.start(), len(m[1]), m[2], m[3]) for m in _DEFINED.finditer(text)] for text in self._before]

    @cached_property
    def _defined(self) -> Counter[str]:
        return Counter(name for file in self._definitions for *_, name in file)

    @cached_property
    def _everything(self) -> str:
        return "\n".join(self._before)

    def plant(self, statement: Statement) -> Fact:
        """State a fact, in a statement of the text if there is one of the family, and others that look alike."""
        sites = self._sites(statement) if self._rng.random() < _FROM_REAL_TEXT else []
        fact = self._replace(statement, *self._rng.choice(sites)) if sites else self._write(statement)
        for _ in range(self._rng.choice((1, 1, 2)) if self._rng.random() < _LOOK_ALIKE else 0):
            self._write_alike(fact)
        return fact

    @property
    def texts(self) -> list[str]:
        """The files with what was planted."""
        result = list(self._before)
        for edit in sorted(self._edits, key=lambda e: (e.file, e.start), reverse=True):
            text = result[edit.file]
            result[edit.file] = text[: edit.start] + edit.new + text[edit.stop :]
        return result

    def _sites(self, statement: Statement) -> list[tuple[int, re.Match[str], str, str]]:
        """Statements of the text that are the only ones of their name: file, match, name, owner."""
        found: dict[tuple[str, str], list[tuple[int, re.Match[str], str, str]]] = {}
        for file, text in enumerate(self._before):
            for match in statement.pattern.finditer(text):
                named = match.groupdict()
                owner = named.get("owner") or self._holder(statement, file, match)
                name = named.get("name") or owner
                if owner is not None and name:
                    found.setdefault((name, owner), []).append((file, match, name, owner))
        return [
            sites[0]
            for (name, owner), sites in found.items()
            if len(sites) == 1 and self._is_alone(statement, name, owner) and self._is_free(*sites[0][:2])
        ]

    def _is_alone(self, statement: Statement, name: str, owner: str) -> bool:
        """Whether the text gives nothing else to this name, as far as plain rules can tell."""
        if {name, owner} & self._taken:
            return False
        if name == owner or statement.value in ("class", "string") or statement.added:
            return self._defined[name] == 1
        return self._stated[name] <= 1 and self._defined[owner] <= 1

    def _is_free(self, file: int, match: re.Match[str]) -> bool:
        """Whether nothing was planted here, or close by."""
        return all(e.file != file or e.stop < match.start() or match.end() < e.start for e in self._edits)

    def _holder(self, statement: Statement, file: int, match: re.Match[str]) -> str | None:
        """What holds the statement: empty where nothing need, None where it is something else."""
        if not statement.holder:
            return ""
        start, text = match.start(), self._before[file]
        if statement.holder in ("table", "call"):
            found = (_TABLE if statement.holder == "table" else _CALL).findall(text[max(0, start - _NEAR) : start])
            return found[-1] if found else None
        indent, kinds = len(match.group()) - len(match.group().lstrip(" ")), ("def", "class")
        wanted = ("class",) if statement.holder == "class" and "self" in statement.find else kinds
        places = self._definitions[file]
        for at in range(bisect_left(places, (start,)) - 1, -1, -1):  # the nearest one that is indented less
            _, depth, kind, name = places[at]
            if depth < indent and kind in wanted:
                return name if kind == statement.holder else None
        return None

    def _replace(self, statement: Statement, file: int, match: re.Match[str], name: str, owner: str) -> Fact:
        """A real statement with a fresh value."""
        old = match.groupdict().get("value") or ""
        value = self._value(statement, old)
        if statement.added:
            at, indent = match.start("at"), match.groupdict().get("indent") or ""
            new = self._rng.choice(statement.added).format(value=value.stated, indent=indent)
            self._edits.append(Edit(file, at, at, new))
        elif statement.spreads:
            self._spread(file, match, value)
        else:
            self._edits.append(Edit(file, match.start("value"), match.end("value"), value.stated))
        self._taken |= {name, owner} - {""}
        return Fact(statement, name, owner, self._paths[file], value)

    def _spread(self, file: int, match: re.Match[str], value: Value) -> None:
        """Every use of the old name in the function, in place of the first alone."""
        text, start = self._before[file], match.start("value")
        end = next((place for place, *_ in self._definitions[file] if place > start), len(text))
        body = re.sub(rf"(?<![\w.]){re.escape(match['value'])}\b", value.text, text[start:end])
        self._edits.append(Edit(file, start, end, body))

    def _value(self, statement: Statement, like: str = "") -> Value:
        if statement.value == "module":
            return new_module(self._rng, self.words)
        if statement.value in ("name", "class"):
            case = "lower" if statement.value == "name" else "camel"
            return Value(new_name(self._rng, self.words, case), is_name=True)  # type: ignore[arg-type]
        return new_literal(self._rng, self.words, like or ("''" if statement.value == "string" else ""))

    def _write(self, statement: Statement) -> Fact:
        """A statement of fresh names at the margin."""
        name = self._fresh(lambda: new_name(self._rng, self.words, statement.case))
        case = "camel" if statement.holder == "class" else "lower"
        owner = self._fresh(lambda: new_name(self._rng, self.words, case)) if statement.owned else ""  # type: ignore[arg-type]
        if "{name}" not in statement.blocks[0]:
            name = owner
        return self._put(Fact(statement, name, owner, "", self._value(statement)))

    def _write_alike(self, fact: Fact) -> None:
        """A statement with another value, of names that differ in one word each."""
        words, rng = self.words, self._rng
        owner = self._fresh(lambda: near_name(fact.owner, rng, words)) if fact.owner else ""
        name = owner if fact.name == fact.owner else self._fresh(lambda: near_name(fact.name, rng, words))
        like = fact.value.stated if fact.statement.value == "literal" else ""
        self._put(replace(fact, name=name, owner=owner, value=self._value(fact.statement, like)))

    def _fresh(self, make: Callable[[], str]) -> str:
        """A name that the text does not have."""
        name = make()
        for _ in range(_TRIES):
            if name not in self._taken and name not in self._everything:
                break
            name = make()
        self._taken.add(name)
        return name

    def _put(self, fact: Fact) -> Fact:
        """A new statement at a random place at the margin of a random file; at its end where it has none."""
        rng, statement = self._rng, fact.statement
        file = rng.choices(range(len(self._before)), [len(text) + 1 for text in self._before])[0]
        text = self._before[file]
        places = [m.start() for m in _AT_MARGIN.finditer(text)]
        free = [p for p in places if all(e.file != file or not e.start < p < e.stop for e in self._edits)]
        at = rng.choice(free) if free else len(text)
        added = rng.choice(statement.added).format(value=fact.value.stated, indent="") if statement.added else ""
        word, other = rng.sample(self.words, 2)
        named = {"name": fact.name, "owner": fact.owner, "value": fact.value.stated}
        block = rng.choice(statement.blocks).format(added=added, word=word, other=other, **named)
        before = "" if free or text.endswith("\n") or not text else "\n"
        self._edits.append(Edit(file, at, at, before + block + "\n"))
        return replace(fact, path=self._paths[file])


def _stem(path: str) -> str:
    parts = path.removesuffix(".py").split("/")
    return parts[-2] if parts[-1] == "__init__" and len(parts) > 1 else parts[-1]
