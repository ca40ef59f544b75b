"""`indexshare tokenize`: text to token ids and back."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from indexshare.cli.output import console, note, print_json, print_table, write
from indexshare.cli.prompts import read_prompt
from indexshare.config.arguments import as_integer
from indexshare.text.files import plural

if TYPE_CHECKING:
    from indexshare.text.tokenizer import Tokenizer


def tokenize(
    *texts: str,
    file: Annotated[tuple[str, ...], Parameter(name=["--file", "-f"], negative="", allow_leading_hyphen=True)] = (),
    model: Annotated[str, Parameter(name=["--model", "-m"])] = "nano",
    decode: Annotated[bool, Parameter(negative="")] = False,
    plain: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Show the tokens of a text, as `generate` would read it, and count them.

    Parameters
    ----------
    texts
        The texts, each quoted as one argument; with --decode token ids.
    file
        Read a text (or ids) from this file, or from standard input if it is `-`. May be given several times.
    model
        Whose tokenizer: name of a shipped model, or a model directory.
    decode
        The other way round: write the text of token ids, separated by spaces or commas.
    plain
        Nothing but the text: names of special tokens in it are ordinary text, and nothing is put around it.
    json
        Print one JSON object instead.
    """
    from indexshare.config.shipped import model_directory
    from indexshare.text.tokenizer import Tokenizer

    if not texts and not file:
        raise ValueError("nothing to read; give a text as an argument, or a file with --file (- for standard input)")
    tokenizer = Tokenizer.load(model_directory(model))
    if decode:
        if plain:
            raise ValueError("--plain is about reading a text; leave it out with --decode")
        ids = [number for text in (*texts, *map(read_prompt, file)) for number in parse_ids(text, tokenizer)]
        _write_text(model, ids, tokenizer, json)
        return
    reports = [examine(text, tokenizer, plain=plain) for text in (*texts, *map(read_prompt, file))]
    if json:
        print_json({"model": model, "texts": reports})
        return
    for report in reports:
        rows = [(_quoted(tokenizer.token_bytes(i)), str(i)) for i in report["ids"]]
        print_table("", ("token", "id"), rows, to=console())
        note(
            f"{plural(report['tokens'], 'token')}, {plural(report['characters'], 'character')}, "
            f"{plural(report['bytes'], 'byte')}: {report['bytes'] / max(1, report['tokens']):.2f} bytes per token"
        )


def _quoted(piece: bytes) -> str:
    """A token in quotes: as text, or as bytes where it is not whole characters."""
    try:
        return repr(piece.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(piece)


def examine(text: str, tokenizer: Tokenizer, *, plain: bool = False) -> dict[str, Any]:
    """Ids, pieces and counts of a text, as plain values; parts of characters are shown as bytes, `\\xe2`."""
    ids = tokenizer.encode(text, parse_special=False) if plain else tokenizer.encode_prompt(text)
    pieces = [tokenizer.token_bytes(i).decode("utf-8", errors="backslashreplace") for i in ids]
    return {
        "ids": ids, "pieces": pieces, "tokens": len(ids), "characters": len(text), "bytes": len(text.encode("utf-8"))
    }  # fmt: skip


def parse_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a list such as `17 4 256`, `17,4` or `[17, 4]`; ValueError for anything else."""
    numbers = []
    for word in re.split(r"[\s,]+", text.strip().removeprefix("[").removesuffix("]").strip()):
        if not (word.isascii() and word.isdigit()):
            raise ValueError(f"{word!r} is no token id; expected whole numbers separated by spaces or commas")
        numbers.append(as_integer("a token id", int(word), low=0, high=tokenizer.vocab_size - 1))
    return numbers


def _write_text(model: str, ids: list[int], tokenizer: Tokenizer, json: bool) -> None:
    text = tokenizer.decode(ids)
    if json:
        print_json({"model": model, "ids": ids, "text": text})
    else:
        write(text + ("" if text.endswith("\n") else "\n"))
