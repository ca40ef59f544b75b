"""The ways in which a fact is asked for later: in code, in tests, in prose, in the files of other programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from indexshare.data.forms.values import Spelling

Host = Literal[
    "code", "test", "notes", "rst", "settings", "json", "yaml", "shell", "log", "header", "script", "page", "query"
]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One family of questions.

    Attributes:
        name: of the family.
        templates: with `{v}` where the answer stands, and what says which fact is meant: `{ref}` (an expression),
            `{said}` (in words), `{name}` alone, `{NAME}` in capitals; `{owner}`, `{path}` (the module with its
            package), `{symbol}` (what is imported), `{word}`.
        host: the kind of file that it stands in.
        spelling: of the answer.
    """

    name: str
    templates: tuple[str, ...]
    host: Host
    spelling: Spelling = "python"


def _code(name: str, *templates: str, host: Host = "code") -> Question:
    return Question(name=name, templates=templates, host=host)


def _text(name: str, *templates: str, host: Host = "notes", spelling: Spelling = "bare") -> Question:
    return Question(name=name, templates=templates, host=host, spelling=spelling)


QUESTIONS: tuple[Question, ...] = (
    _code("assert", "assert {ref} == {v}", "assert {ref} == {v}, '{name}'", host="test"),
    _code("unittest", "self.assertEqual({ref}, {v})", "self.assertIs({ref}, {v})", host="test"),
    _code("parametrized", "check_all([('{name}', {v})])", "case('{name}', expected={v})", host="test"),
    _code(
        "importing",
        "from {path} import {symbol}  # {name}: {v}",
        "from {path} import {symbol}\n\nassume({ref}, {v})",
        host="test",
    ),
    _code("matcher", "assert_that({ref}, equal_to({v}))", "expect({ref}).to_equal({v})", host="test"),
    _code("mocked", "mocker.patch('{path}.{name}', {v})", "monkeypatch.setitem(known, '{name}', {v})", host="test"),
    _code("print", "print({ref})  # {v}", "print('{name}', {ref})  # {name} {v}"),
    _code("condition", "if {ref} != {v}:\n    raise SystemExit(1)", "while {ref} == {v}:\n    {word}()"),
    _code("arrow", "{ref}  # -> {v}", "{ref}  # gives {v}"),
    _code("copied", "{word} = {ref}  # that is, {v}", "{word} = {ref}  # {v} as of now"),
    _code("match", "match {ref}:\n    case {v}:\n        {word}()"),
    _code("callback", "check(lambda: {ref}, {v})", "retry_until(lambda: {ref}, {v})"),
    _code("expected_table", "EXPECTED = {{'{name}': {v}}}", "expected['{name}'] = {v}"),
    _code("logging", "log.debug('%s: %s', '{name}', {v})", "logger.info('{name} is %s', {v})"),
    _code("conditional_value", "{word} = None if {ref} == {v} else {word}", "{word} = {ref} == {v}"),
    _code("passed_on", "{word}({name}={v})", "configure({name}={v}, strict=True)"),
    _code("doctest", ">>> {ref}\n{v}", ">>> print(repr({ref}))\n{v}", host="rst"),
    _code("comment", "# {said} is {v}", "# Here {said} is {v}.", "# Mind that {said} is {v}"),
    _code("docstring", '"""Relies on {said} being {v}."""', '"""Assumes that {said} is {v}."""'),
    _text("bullet", "* {said}: {v}", "- {said} is {v}"),
    _text("table", "| {said} | {v} |", "| `{name}` | {v} |"),
    _text("asked", "Q: What is {said}?\nA: {v}", "**What is {said}?** {v}"),
    _text("changelog", "* Changed {said}, which was {v}.", "* {said} is no longer {v}."),
    _text("sentence", "In this version {said} is {v}.", "Note that {said} is {v}, and stays so."),
    _text("commit", "Keep {said} at {v}", "Rely on {said} being {v}"),
    _text("definition", ".. data:: {name}\n   :value: {v}", ".. py:data:: {name}\n   :value: {v}", host="rst"),
    _text("directive", ":{name}: {v}", ":param {name}: {v} unless given", host="rst"),
    _text("toml", "{name} = {v}", "tool.{name} = {v}", host="settings", spelling="double"),
    _text("yaml", "{name}: {v}", "- {name}: {v}", host="yaml"),
    _text("json", '{{"{name}": {v}}}', '{{"key": "{name}", "value": {v}}}', host="json", spelling="double"),
    _text("shell", "export {NAME}={v}", "{NAME}={v} ./run.sh", host="shell"),
    _text("command", "run --{name} {v}", "run --{name}={v} --verbose", host="shell"),
    _text("log_line", "INFO {owner}: {name}={v}", "DEBUG {name} is {v}", host="log"),
    _text("repr", "<{owner} {name}={v}>", "{owner}({name}={v})", host="log"),
    _text("define", "#define {NAME} {v}", "static const auto {name} = {v};", host="header", spelling="double"),
    _text(
        "javascript",
        "const {name} = {v};",
        "expect(await {word}('{name}')).toBe({v});",
        host="script",
        spelling="double",
    ),
    _text("element", "<{name}>{v}</{name}>", '<option name="{name}">{v}</option>', host="page"),
    _text("cell", "<td>{name}</td><td>{v}</td>", "<dt>{name}</dt><dd>{v}</dd>", host="page"),
    _text("insert", "INSERT INTO known VALUES ('{name}', {v});", host="query", spelling="python"),
    _text("diff", "- {name} = {v}", "-    {name}: {v}", host="notes"),
)
FILES: dict[Host, str] = {
    "code": "{word}_{other}.py",
    "test": "tests/test_{word}.py",
    "notes": "docs/{word}.md",
    "rst": "docs/{word}.rst",
    "settings": "{word}.toml",
    "json": "{word}.json",
    "yaml": "{word}.yaml",
    "shell": "scripts/{word}.sh",
    "log": "{word}.log",
    "header": "src/{word}.h",
    "script": "web/{word}.js",
    "page": "web/{word}.html",
    "query": "{word}.sql",
}
