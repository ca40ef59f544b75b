"""`indexshare score`: how likely a model finds a text, token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.text import Text

from indexshare.cli.measuring import MeasuringBar
from indexshare.cli.options import ModelOptions
from indexshare.cli.output import console, note, print_json, print_pairs, print_table, printable
from indexshare.cli.prompts import read_prompt
from indexshare.cli.streaming import token_json, token_text
from indexshare.text.files import plural

if TYPE_CHECKING:
    from indexshare.engine.outputs import TokenLogprobs
    from indexshare.engine.scoring import TextScore
    from indexshare.text.tokenizer import Tokenizer

# Bits up to which a token has a colour; beyond the last, the last one's.
_COLOURS = ((0.5, "green"), (2.0, "cyan"), (5.0, "yellow"), (9.0, "magenta"), (math.inf, "red"))


def score(
    file: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    after: str | None = None,
    top: int = 0,
    window: int | None = None,
    stride: int | None = None,
    table: Annotated[bool, Parameter(negative="")] = False,
    model_options: ModelOptions | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Give the log-probability of every token of a text, and its bits per byte.

    On a terminal the text is shown in colours, by how much each token surprised the model; elsewhere as a table. A text
    that the model's context does not hold is scored in windows that overlap by half, and the command says so.

    Parameters
    ----------
    file
        The text: a file, or `-` for standard input.
    after
        Text that stands before it and is not scored, such as a question before its answer.
    top
        Also give so many most likely tokens for each place.
    window
        Most tokens read in one pass: the model's context unless given.
    stride
        Tokens by which the windows move on: half a window unless given.
    table
        A table on a terminal, too.
    json
        Print one JSON object instead.
    """
    options = model_options or ModelOptions()
    text, tokenizer = read_prompt(file), options.tokenizer()
    length = len(tokenizer.encode(text, parse_special=False)) + len(tokenizer.encode(after or ""))
    room = min(length + len(tokenizer.around[0]), options.context())
    llm = options.load(tokenizer, cache_tokens=max(1, room))
    with MeasuringBar() as bar, bar.stage("scoring") as progress:
        found = llm.score(text, after=after, top=top, window=window, stride=stride, progress=progress)
    if found.windows > 1:
        least = found.window - found.stride
        note(
            f"scored in {found.windows} windows of up to {found.window:,} tokens, {found.stride:,} apart: "
            f"each token stands behind {least:,} others or more"
        )
    if json:
        print_json({"model": options.model} | as_json(found, tokenizer))
        return
    if console().is_terminal and console().color_system and not table:
        _show_colours(found, tokenizer)
    else:
        _show_table(found.tokens, tokenizer)
    _show_sums(options.model, found)


def as_json(found: TextScore, tokenizer: Tokenizer) -> dict[str, Any]:
    """A score as plain values; the log-probability of a token with nothing before it is null."""
    tokens = [
        {"token": token_text(i, tokenizer), "id": i, "logprob": None, "top": []}
        if entry is None
        else token_json(entry, tokenizer)
        for i, entry in zip(found.token_ids, found.tokens, strict=True)
    ]
    return {
        "tokens": tokens,
        "scored": found.scored,
        "bytes": found.num_bytes,
        "logprob": found.logprob,
        "bits": found.bits,
        "bits_per_byte": found.bits_per_byte,
        "perplexity": found.perplexity,
        "windows": found.windows,
        "window": found.window,
        "stride": found.stride,
    }


def _bits(entry: TokenLogprobs) -> float:
    return -entry.logprob / math.log(2)


def _show_table(tokens: Sequence[TokenLogprobs | None], tokenizer: Tokenizer) -> None:
    rows = []
    for entry in tokens:
        if entry is not None:
            others = [f"{token_text(i, tokenizer)!r} {math.exp(value):.1%}" for i, value in entry.top]
            own = repr(token_text(entry.token_id, tokenizer))
            rows.append((own, f"{entry.logprob:.4f}", f"{_bits(entry):.2f}", f"{math.exp(entry.logprob):.1%}", *others))
    most = max((len(entry.top) for entry in tokens if entry is not None), default=0)
    columns = ("token", "log-probability", "bits", "probability", *(f"{n}. most likely" for n in range(1, most + 1)))
    print_table("tokens", columns, rows, to=console(), text=(0, *range(4, 4 + most)))


def coloured(found: TextScore, tokenizer: Tokenizer) -> Text:
    """The text itself, each character in the colour of its least likely token; dim where there is no probability."""
    from indexshare.text.tokenizer import IncrementalDecoder

    shown, worst, decoder = Text(), 0.0, IncrementalDecoder(tokenizer, skip_special=False)
    for token_id, entry in zip(found.token_ids, found.tokens, strict=True):
        worst = max(worst, 0.0 if entry is None else _bits(entry))
        piece = decoder.push(token_id) if token_id < tokenizer.vocab_size else ""
        if piece:  # else the bytes of a character are not all there yet
            style = "dim" if entry is None else next(colour for bits, colour in _COLOURS if worst <= bits)
            shown.append(printable(piece), style=style)
            worst = 0.0
    return shown.append(printable(decoder.finish()), style=_COLOURS[-1][1])


def _show_colours(found: TextScore, tokenizer: Tokenizer) -> None:
    out = console()
    out.print(coloured(found, tokenizer), soft_wrap=True)
    legend = Text("bits: ")
    for bits, colour in _COLOURS:
        legend.append(f" up to {bits:g} " if math.isfinite(bits) else " more ", style=colour)
    out.print(legend)


def _show_sums(model: str, found: TextScore) -> None:
    per_byte = "-" if found.bits_per_byte is None else f"{found.bits_per_byte:.4f}"
    print_pairs(
        f"{model}: {plural(found.scored, 'token')} scored",
        [
            ("bits per byte", per_byte),
            ("bits per token", f"{found.bits / found.scored:.4f}"),
            ("bits in all", f"{found.bits:,.1f}"),
            ("log-probability", f"{found.logprob:,.4f}"),
            ("perplexity", f"{found.perplexity:,.3f}"),
        ],
        to=console(),
    )
