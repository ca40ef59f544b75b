"""Names that only a long context can supply: completing them with it and with a short one.

Two kinds of uses in held-out files: `far`, where every mention of the name before the use is out of the short context's
reach, and `package`, where the file has not mentioned the name yet and a file of its package that it imports defines
it. Names in comments and strings are text, not uses.
"""

from __future__ import annotations

import io
import math
import random
import re
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import PurePosixPath

import torch

from indexshare.data.splitting import Document, package_of
from indexshare.eval.bootstrap import Estimate, ratio
from indexshare.eval.forward import Progress, batches, check_length, hidden_states, predictions
from indexshare.eval.package import Target, choose_targets, package_context
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.imports import definitions, imported_modules, is_module
from indexshare.text.tokenizer import Tokenizer
from indexshare.train.losses import token_losses

KINDS = ("far", "package")
_MOST_DEFINERS = 2  # a name that more files of the package define (`close`, `read`) is nobody's in particular
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
Definers = dict[tuple[str, str], list[str]]


@dataclass(frozen=True, kw_only=True)
class Use:
    """A use of a name: `body[start:stop]` are its tokens (a space or sign before it may belong to the first)."""

    name: str
    kind: str
    line: int
    start: int
    stop: int
    defined_in: str


@dataclass(frozen=True, kw_only=True)
class CompletedUse:
    """How a use was completed; pairs are (long context, short context).

    Attributes:
        file, line, name, kind, defined_in: what and where; `defined_in` is the file itself for `far`.
        visible: the long context holds the name.
        right: greedy decoding writes exactly the name and ends it.
        bits: code length of the name's tokens.
        prompts: token ids of the two prompts, up to the name.
        ahead: how the file goes on after the prompts, to the end of the line.
    """

    file: str
    line: int
    name: str
    kind: str
    defined_in: str
    visible: bool
    right: tuple[bool, bool]
    bits: tuple[float, float]
    prompts: tuple[list[int], list[int]]
    ahead: str


@dataclass(frozen=True, kw_only=True)
class KindFigures:
    """Figures of one kind of use; accuracies and bits per name as (long context, short context)."""

    uses: int
    visible: int
    accuracy: tuple[Estimate, Estimate]
    accuracy_gain: Estimate
    bits: tuple[Estimate, Estimate]
    bits_saved: Estimate


def find_uses(tokenizer: Tokenizer, target: Target, definers: Definers, *, reach: int, last: int) -> list[Use]:
    """Uses of both kinds in the first `last` tokens of a target, after its opening.

    Args:
        tokenizer: the one of the target's tokens.
        target: the file.
        definers: which files of each package define a name.
        reach: tokens that the short context sees.
        last: tokens of the body to look at.
    """
    sizes = [len(tokenizer.token_bytes(token)) for token in target.body[:last]]
    ends = list(accumulate(sizes))
    token_at = [i for i, size in enumerate(sizes) for _ in range(size)]  # by byte
    file, own = target.document.name, definitions(target.document.text)
    imports = imported_modules(target.document.text, PurePosixPath(file))
    seen: dict[str, int] = {}  # name -> token after its last mention
    uses = list[Use]()
    for name, line, byte, code in _words(target.document.text):
        if byte + len(name) > len(token_at):
            break
        start, stop = token_at[byte], token_at[byte + len(name) - 1] + 1
        exact = ends[stop - 1] == byte + len(name) and byte - (ends[start] - sizes[start]) <= 1
        before, seen[name] = seen.get(name), stop
        if not code or start < target.opening or not exact:
            continue
        others = [other for other in definers.get((package_of(file), name), []) if other != file]
        imported = [o for o in others if any(is_module(PurePosixPath(o), module) for module in imports)]
        if name in own and before is not None and start - before > reach:
            uses.append(Use(name=name, kind="far", line=line, start=start, stop=stop, defined_in=file))
        elif before is None and imported and len(others) <= _MOST_DEFINERS:
            uses.append(Use(name=name, kind="package", line=line, start=start, stop=stop, defined_in=imported[0]))
    return uses


def _words(text: str) -> Iterator[tuple[str, int, int, bool]]:
    """Every word: itself, its line, its first byte, and whether it is a name in code; none where Python cannot read."""
    lines = text.split("\n")
    try:
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        names = {token.start for token in tokens if token.type == tokenize.NAME}
    except (tokenize.TokenError, SyntaxError):
        return
    first = 0
    for number, line in enumerate(lines, 1):
        for match in _WORD.finditer(line):
            byte = first + len(line[: match.start()].encode("utf-8"))
            yield match[0], number, byte, (number, match.start()) in names
        first += len(line.encode("utf-8")) + 1


def find_definers(documents: Sequence[Document]) -> Definers:
    """The files that define a name, by package and name."""
    found: Definers = {}
    for document in documents:
        for name in definitions(document.text):
            found.setdefault((package_of(document.name), name), []).append(document.name)
    return found


def complete_identifiers(
    model: GlmMoeDsa,
    tokenizer: Tokenizer,
    held_out: Sequence[Document],
    everything: Sequence[Document],
    *,
    long: int = 16_384,
    short: int = 1024,
    files: int = 24,
    uses_per_file: int = 12,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[CompletedUse]:
    """Complete names with a long and with a short context, as `indexshare complete` lays them out.

    With the long context all names of a file are completed in one pass: package files chosen by the file's opening,
    then the file. With the short one each name has its own prompt: the tokens right before it, and what room is left
    for the package where the file has not so many.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        held_out: files the model was not trained on.
        everything: all files of the text; where packages come from.
        long, short: tokens of the two contexts.
        files: at most so many files with uses, drawn by `seed`.
        uses_per_file: at most so many in each file, drawn by `seed`.
        progress: told (number of the file being completed, files at most).

    Raises:
        ValueError: contexts that the model does not have or that are in the wrong order, or no use in any file.
    """
    check_length(model, long)
    if not 64 <= short < long:
        raise ValueError(f"the short context is {short} tokens, the long one {long}; expected 64 or more, and less")
    targets = choose_targets(tokenizer, held_out, everything, count=len(held_out) or 1, seed=seed)
    definers = find_definers(everything)
    result, with_uses = list[CompletedUse](), 0
    for target in targets:
        uses = find_uses(tokenizer, target, definers, reach=short, last=min(len(target.body), long // 2))
        if not uses:
            continue
        if with_uses == files:
            break
        with_uses += 1
        if progress is not None:
            progress(with_uses, min(files, len(targets)))
        chosen = random.Random(f"{seed}/{target.document.name}").sample(uses, min(len(uses), uses_per_file))
        result += _complete_file(model, tokenizer, target, sorted(chosen, key=lambda use: use.start), long, short)
    if not result:
        raise ValueError("no held-out file uses a name from far above or from its package; give more files (--text)")
    return result


def _complete_file(
    model: GlmMoeDsa, tokenizer: Tokenizer, target: Target, uses: Sequence[Use], long: int, short: int
) -> list[CompletedUse]:
    """All uses of one file, under both contexts."""
    own = [*target.header, *target.body[: uses[-1].stop]]
    before, _ = package_context(tokenizer, target, target.opening, max(0, long - len(own)))
    row, offset = [*before, *own], len(before) + len(target.header)
    wide = _score(model, tokenizer, [row], [[(offset + use.start, offset + use.stop) for use in uses]])
    prompts = [_short_prompt(tokenizer, target, use, short) for use in uses]
    rows = [[*prompt, *target.body[use.start : use.stop]] for prompt, use in zip(prompts, uses, strict=True)]
    narrow = _score(
        model, tokenizer, rows, [[(len(prompt), len(whole))] for prompt, whole in zip(prompts, rows, strict=True)]
    )
    shown = tokenizer.decode(before)
    mentioned = set(_WORD.findall(shown))
    result = []
    for use, prompt, (long_right, long_bits), (short_right, short_bits) in zip(
        uses, prompts, wide, narrow, strict=True
    ):
        rest = tokenizer.decode(target.body[use.start : use.stop + 64])
        result.append(
            CompletedUse(
                file=target.document.name,
                line=use.line,
                name=use.name,
                kind=use.kind,
                defined_in=use.defined_in,
                visible=use.kind == KINDS[0] or use.name in mentioned,
                right=(long_right, short_right),
                bits=(long_bits, short_bits),
                prompts=(row[: offset + use.start], prompt),
                ahead=rest.split("\n")[0],
            )
        )
    return result


def _short_prompt(tokenizer: Tokenizer, target: Target, use: Use, short: int) -> list[int]:
    """At most `short` tokens: the file line, the tokens before the use, and package files if there is room."""
    room = short - len(target.header)
    tail = target.body[max(0, use.start - room) : use.start]
    before, _ = package_context(tokenizer, target, use.start, room - len(tail)) if room > len(tail) else ([], ())
    return [*before, *target.header, *tail]


def _score(
    model: GlmMoeDsa, tokenizer: Tokenizer, rows: Sequence[list[int]], spans: Sequence[Sequence[tuple[int, int]]]
) -> list[tuple[bool, float]]:
    """Of each span of each row: whether greedy decoding writes it and then ends the name, and its bits."""
    result: list[tuple[bool, float]] = []
    for batch in batches([len(row) for row in rows]):
        hidden, view = hidden_states(model, [rows[i] for i in batch])
        for span, i in zip(view.spans, batch, strict=True):
            for start, stop in spans[i]:
                ids = rows[i][start:stop]
                states = hidden[span.start + start - 1 : span.start + stop]  # one more: what follows the name
                *said, after = predictions(model, states)
                nats = token_losses(states[:-1], model.lm_head.weight, torch.tensor(ids, device=states.device)).sum()
                ended = not re.match(rb"[A-Za-z0-9_]", tokenizer.token_bytes(after))
                result.append((said == ids and ended, float(nats) / math.log(2)))
    return result


def summarise(uses: Sequence[CompletedUse]) -> dict[str, KindFigures]:
    """Figures by kind, of those `visible` in the long context and of `all`; groups without a use are left out."""
    groups = {kind: [use for use in uses if use.kind == kind] for kind in KINDS}
    groups |= {"visible": [use for use in uses if use.visible], "all": list(uses)}
    return {name: _figures(chosen) for name, chosen in groups.items() if chosen}


def _figures(uses: Sequence[CompletedUse]) -> KindFigures:
    counts = Counter(use.file for use in uses)
    sizes = list(map(float, counts.values()))

    def mean(values: Sequence[float]) -> Estimate:
        sums = dict.fromkeys(counts, 0.0)
        for use, value in zip(uses, values, strict=True):
            sums[use.file] += value
        return ratio(list(sums.values()), sizes)

    return KindFigures(
        uses=len(uses),
        visible=sum(use.visible for use in uses),
        accuracy=(mean([use.right[0] for use in uses]), mean([use.right[1] for use in uses])),
        accuracy_gain=mean([use.right[0] - use.right[1] for use in uses]),
        bits=(mean([use.bits[0] for use in uses]), mean([use.bits[1] for use in uses])),
        bits_saved=mean([use.bits[1] - use.bits[0] for use in uses]),
    )
