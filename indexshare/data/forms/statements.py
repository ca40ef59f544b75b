"""The ways in which real code states a fact: where one is found, how it is written anew, and how it is referred to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from indexshare.data.forms.values import LITERAL, Case

Holder = Literal["", "def", "class", "table", "call"]
_NAME = r"(?P<name>[a-z_][a-z0-9_]{3,40})"
_VALUE = rf"(?P<value>{LITERAL})"
_QUOTED = r"(?P<mark>['\"])(?P<name>[A-Za-z][\w.-]{3,40})(?P=mark)"


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One family of statements.

    Attributes:
        name: of the family.
        find: a pattern over real text, by lines: groups `name` and `value` (replaced by a fresh one), or `at`, a place
            where one of `added` is put in; `owner` where the name says nothing alone.
        blocks: the same written anew, as lines at the margin.
        refs: Python expressions for the value.
        said: in words.
        holder: what `owner` is, where `find` has no such group: the enclosing function or class, the dictionary, the
            function that is called.
        case: how new names are written.
        value: a literal, a string, a dotted module, a name in lower case or that of a class.
        added: what is put in at `at`.
        spreads: other uses of the value in the function below are replaced too.
    """

    name: str
    find: str
    blocks: tuple[str, ...]
    refs: tuple[str, ...]
    said: tuple[str, ...]
    holder: Holder = ""
    case: Case = "lower"
    value: Literal["literal", "string", "module", "name", "class"] = "literal"
    added: tuple[str, ...] = ()
    spreads: bool = False

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """`find`, compiled."""
        return re.compile(self.find, re.MULTILINE)

    @property
    def owned(self) -> bool:
        """Whether the name alone is not enough."""
        return any("{owner}" in block for block in self.blocks)


STATEMENTS: tuple[Statement, ...] = (
    Statement(
        name="constant",
        find=rf"^(?P<name>[A-Z][A-Z0-9_]{{3,40}})(?:: [^=\n]{{2,40}})? = {_VALUE}$",
        blocks=("{name} = {value}\n", "{name}: Final = {value}\n"),
        refs=("{name}", "{module}.{name}", "getattr({module}, '{name}')"),
        said=("`{name}`", "the constant `{name}` of `{module}`", "the value of `{name}`"),
        case="upper",
    ),
    Statement(
        name="local",
        find=rf"^ +{_NAME} = {_VALUE}$",
        blocks=("def {owner}({word}):\n    {name} = {value}\n    return {word}[{name}]\n",),
        refs=("locals_of({owner})['{name}']", "{owner}.variables['{name}']"),
        said=("`{name}` in `{owner}`", "the local variable `{name}` of `{owner}()`"),
        holder="def",
    ),
    Statement(
        name="attribute",
        find=rf"^ +self\.{_NAME} = {_VALUE}$",
        blocks=("class {owner}:\n    def __init__(self, {word}):\n        self.{name} = {value}\n",),
        refs=("{owner}().{name}", "getattr({owner}(), '{name}')", "vars({owner}())['{name}']"),
        said=("the attribute `{name}` of a new `{owner}`", "`{owner}.{name}`"),
        holder="class",
    ),
    Statement(
        name="field",
        find=rf"^    {_NAME}: [^=\n#]{{2,40}} = {_VALUE}$",
        blocks=("@dataclass\nclass {owner}:\n    {word}: str\n    {name}: object = {value}\n",),
        refs=("{owner}.{name}", "{owner}.__dataclass_fields__['{name}'].default"),
        said=("the field `{name}` of `{owner}`", "the default of `{owner}.{name}`"),
        holder="class",
    ),
    Statement(
        name="class_variable",
        find=rf"^    {_NAME} = {_VALUE}$",
        blocks=("class {owner}:\n    {name} = {value}\n    {word} = None\n",),
        refs=("{owner}.{name}", "{owner}.__dict__['{name}']"),
        said=("`{name}` of the class `{owner}`", "the class variable `{owner}.{name}`"),
        holder="class",
    ),
    Statement(
        name="default",
        find=r"^ *(?:async )?def (?P<owner>\w{4,40})\((?:[^()\n]|\([^()\n]*\))*?"
        rf"\b{_NAME}(?:: ?[\w\[\]., |]{{2,40}}?)? ?= ?{_VALUE}(?=[,)])",
        blocks=("def {owner}({word}, {name}={value}):\n    return {word}.get({name})\n",),
        refs=("signature({owner}).parameters['{name}'].default", "{owner}.__kwdefaults__['{name}']"),
        said=("the default of `{name}` in `{owner}`", "`{name}` where `{owner}` is called without it"),
    ),
    Statement(
        name="entry",
        find=rf"^ +{_QUOTED}: {_VALUE},$",
        blocks=("{owner} = {{\n    '{word}': None,\n    '{name}': {value},\n}}\n",),
        refs=("{owner}['{name}']", "{owner}.get('{name}')", "dict({owner})['{name}']"),
        said=("`{name}` in `{owner}`", "the entry `{name}` of `{owner}`"),
        holder="table",
    ),
    Statement(
        name="keyword",
        find=rf"^ +{_NAME}={_VALUE},$",
        blocks=("{word} = {owner}(\n    {name}={value},\n    {other}=None,\n)\n",),
        refs=("spy({owner}).kwargs['{name}']", "{owner}.call_args.kwargs['{name}']"),
        said=("`{name}` in the call of `{owner}`", "what `{owner}` is given as `{name}`"),
        holder="call",
    ),
    Statement(
        name="returned",
        find=rf"^ +return {_VALUE}$",
        blocks=("def {owner}():\n    return {value}\n", "def {owner}({word}=None):\n    return {value}\n"),
        refs=("{owner}()", "call({owner})"),
        said=("the result of `{owner}()`", "what `{owner}` returns"),
        holder="def",
    ),
    Statement(
        name="imported",
        find=r"^from (?P<value>[a-z][\w.]{3,40}) import (?P<name>[A-Za-z]\w{3,40})$",
        blocks=("from {value} import {name}\n",),
        refs=("{name}.__module__", "module_of({name})"),
        said=("the module of `{name}`", "where `{name}` is imported from"),
        value="module",
    ),
    Statement(
        name="alias",
        find=r"^import (?P<value>[a-z][\w.]{3,40}) as (?P<name>\w{2,20})$",
        blocks=("import {value} as {name}\n",),
        refs=("{name}.__name__", "modules_by_name['{name}']"),
        said=("the module called `{name}` here", "what `{name}` stands for"),
        value="module",
    ),
    Statement(
        name="parameter",
        find=r"^ *def (?P<owner>\w{4,40})\((?:self, |cls, )?(?P<value>[a-z][a-z0-9_]{3,40})\b",
        blocks=("def {owner}({value}, {word}=None):\n    return [{value}, {word}]\n",),
        refs=("first_parameter({owner})", "parameters({owner})[0]"),
        said=("the first parameter of `{owner}`", "the name of what `{owner}` takes first"),
        value="name",
        spreads=True,
    ),
    Statement(
        name="base",
        find=r"^class (?P<name>[A-Z]\w{3,40})\((?P<value>[A-Z]\w{3,40})\):",
        blocks=("class {name}({value}):\n    pass\n",),
        refs=("{name}.__base__.__name__", "{name}.__mro__[1].__name__"),
        said=("the base of `{name}`", "the class that `{name}` extends"),
        case="camel",
        value="class",
    ),
    Statement(
        name="result_type",
        find=r"^ *def (?P<name>\w{4,40})\([^\n]*\) -> (?P<value>[A-Z]\w{3,40}):",
        blocks=("def {name}({word}) -> {value}:\n    return make({word})\n",),
        refs=("{name}.__annotations__['return']", "return_type({name})"),
        said=("the type of what `{name}` returns", "the result type of `{name}`"),
        value="class",
    ),
    Statement(
        name="decorator",
        find=r"^@[\w.]+\((?P<value>'[\w-]{3,30}'|\"[\w-]{3,30}\")\)\n(?:def|class) (?P<name>\w{4,40})",
        blocks=("@register({value})\ndef {name}({word}):\n    pass\n",),
        refs=("registered_name({name})", "{name}.key"),
        said=("the key of `{name}`", "the name under which `{name}` is registered"),
        value="string",
    ),
    Statement(
        name="docstring",
        find=r"^ *(?:async )?def (?P<name>\w{4,40})\([^\n]*:\n +\"\"\"[A-Z][^\n\"]{8,100}[.](?P<at>)",
        blocks=('def {name}({word}):\n    """Handle one {word}.{added}"""\n',),
        refs=("documented_limit({name})", "limit({name})"),
        said=("the limit of `{name}`", "what the docstring of `{name}` gives as its limit"),
        added=(" The limit is {value}.", " Its limit: {value}."),
    ),
    Statement(
        name="comment",
        find=r"^(?P<at>)(?P<indent> *)def (?P<name>\w{4,40})\(",
        blocks=("{added}def {name}({word}):\n    return {word}\n",),
        refs=("ticket({name})", "tickets['{name}']"),
        said=("the ticket of `{name}`", "the ticket noted above `{name}`"),
        added=("{indent}# ticket {value}\n", "{indent}# See ticket {value}.\n"),
    ),
    Statement(
        name="error",
        find=r"^ +raise \w+\((?P<value>'[\w ,.:-]{3,40}'|\"[\w ,.:-]{3,40}\")\)$",
        blocks=("def {owner}({word}):\n    raise ValueError({value})\n",),
        refs=("error_of({owner})", "str(failure({owner}))"),
        said=("the error message of `{owner}`", "what `{owner}` raises"),
        holder="def",
        value="string",
    ),
    Statement(
        name="option",
        find=rf"add_argument\((?P<mark>['\"])--(?P<name>[a-z][\w-]{{3,30}})(?P=mark)[^\n]*?default={_VALUE}",
        blocks=("parser.add_argument('--{name}', default={value})\n",),
        refs=("default_of('{name}')", "parser.get_default('{name}')"),
        said=("the default of `--{name}`", "`--{name}` where it is not given"),
    ),
    Statement(
        name="environment",
        find=rf"(?:environ\.get|getenv)\((?P<mark>['\"])(?P<name>[A-Z][A-Z_]{{3,40}})(?P=mark), {_VALUE}\)",
        blocks=("{word} = os.environ.get('{name}', {value})\n", "{word} = os.getenv('{name}', {value})\n"),
        refs=("unset('{name}')", "environment_default('{name}')"),
        said=("`{name}` where it is not set", "the fallback of the variable `{name}`"),
        case="upper",
    ),
    Statement(
        name="tuple",
        find=rf"^(?P<name>[A-Z][A-Z0-9_]{{3,40}}) = [(\[]{_VALUE}, ",
        blocks=("{name} = ({value}, None)\n",),
        refs=("{name}[0]", "next(iter({name}))"),
        said=("the first of `{name}`", "the first entry of `{name}`"),
        case="upper",
    ),
)
