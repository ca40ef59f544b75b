"""`indexshare complete`: continue a source file with a whole source tree as context."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from indexshare.cli.measuring import Status
from indexshare.cli.options import ModelOptions, SamplingOptions
from indexshare.cli.output import note, print_json
from indexshare.cli.streaming import as_json, write_each
from indexshare.config.environment import prefix_directory
from indexshare.text.files import plural

if TYPE_CHECKING:
    from indexshare.engine.params import SamplingParams
    from indexshare.repository.context import PackedContext
    from indexshare.repository.source_tree import Cursor
    from indexshare.text.files import SkippedFile
    from indexshare.text.fill import FillTokens
    from indexshare.text.tokenizer import Tokenizer

DEFAULT_CONTEXT_TOKENS = 16_384
_SHOWN_SKIPS = 8
_SUFFIX_PART = 4  # the text after the cursor takes at most a quarter of the context


def complete(
    place: Annotated[str, Parameter(name="file")],
    /,
    *,
    context: Annotated[Path | None, Parameter(name=["--context", "-c"])] = None,
    max_context_tokens: int | None = None,
    suffix: bool = True,
    model_options: ModelOptions | None = None,
    sampling: SamplingOptions | None = None,
    stats: Annotated[bool, Parameter(negative="")] = False,
    no_cache_dir: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Complete source code at a cursor, with a source tree in the context.

    The continuation is printed as it is made, then what it cost (on standard error). Files that the text before the
    cursor imports are nearest to it; the least relevant that do not fit are left out. A model that has learned to fill
    gaps also gets the text after the cursor, and stops where the gap ends. What was read is kept for the next time.

    Parameters
    ----------
    place
        FILE, FILE:LINE or FILE:LINE:COLUMN, counted from 1. Without a line, the end of the file's text;
        without a column, the end of the line.
    context
        Folder whose text files are put into the context. The file's own folder unless given.
    max_context_tokens
        Most tokens of context: 16,384, or what the model has room for, unless given.
    suffix
        Use the text after the cursor, if the model has learned to.
    stats
        Also say what drafts were good for; those that stayed are green on a terminal.
    no_cache_dir
        Keep nothing in files. Without it and --cache-dir they are in the user's cache folder; see `indexshare cache`.
    json
        Print one JSON object instead: the text (with -n all of them), the files in the context, and the cost.
    """
    from indexshare.repository.source_tree import read_cursor

    options, sampling = model_options or ModelOptions(), sampling or SamplingOptions()
    if no_cache_dir and options.cache_dir is not None:
        raise ValueError(f"--no-cache-dir and --cache-dir {options.cache_dir} contradict each other; give one")
    defaults, tokenizer = options.generation(), options.tokenizer()
    params = sampling.fitted(sampling.params(defaults), options.context() // 2)
    cursor, each_sample = read_cursor(place), sampling.each_sample(params)
    budget = _budget(max_context_tokens, options, params.max_tokens)
    gap = _gap(cursor, tokenizer, budget) if suffix else None
    packed = _pack(cursor, context, tokenizer, budget - len(tokenizer.around[0]) - (gap.room if gap else 0))
    prompt, each_sample = encode_context(packed, tokenizer, gap), [gap.ending(p) if gap else p for p in each_sample]
    if not json:
        _announce(cursor, packed, gap)
        sampling.announce(params, defaults)
    room = len(prompt) + params.max_tokens if len(each_sample) == 1 else None
    llm = options.load(tokenizer, cache_tokens=room, cache_dir=None if no_cache_dir else prefix_directory())
    prompts = [prompt] * len(each_sample)
    if not json:
        described = f"{plural(len(prompt), 'token')} of context from {plural(len(packed.files), 'file')}"
        return write_each(llm, prompts, each_sample, lambda output: described, show_drafts=stats)
    texts = [as_json(output, tokenizer) for output in llm.generate(prompts, each_sample)]
    print_json({"model": options.model} | _where(cursor) | _made(texts) | _files(packed, gap))


def _where(cursor: Cursor) -> dict[str, Any]:
    return {"file": str(cursor.path), "line": cursor.line, "column": cursor.column}


def _made(texts: list[dict[str, Any]]) -> dict[str, Any]:
    """One completion, or all of them."""
    return texts[0] if len(texts) == 1 else {"completions": texts}


def _files(packed: PackedContext, gap: Gap | None) -> dict[str, Any]:
    return {
        "suffix_tokens": len(gap.after) if gap else 0,
        "files": [asdict(entry) for entry in packed.files],
        "left_out": list(packed.left_out),
        "skipped": [asdict(entry) for entry in packed.skipped],
    }


@dataclass(frozen=True, kw_only=True)
class Gap:
    """What stands after the cursor, as token ids, and the tokens that say so."""

    tokens: FillTokens
    after: list[int]

    @property
    def room(self) -> int:
        """Tokens that it takes in the prompt."""
        return len(self.after) + len(self.tokens.ids)

    def ending(self, params: SamplingParams) -> SamplingParams:
        """The same, but that none of the tokens belongs into a middle: they end it, as the end of text does."""
        return replace(params, stop_token_ids=(*params.stop_token_ids, *self.tokens.ids))


def _gap(cursor: Cursor, tokenizer: Tokenizer, budget: int) -> Gap | None:
    """The text after the cursor, a quarter of the budget at most; None without any, or for a model that continues."""
    from indexshare.repository.context import fit_after
    from indexshare.text.fill import learned_fill

    tokens = learned_fill(tokenizer)
    if tokens is None:
        return None

    def count(text: str) -> int:
        return len(tokenizer.encode(text, parse_special=False))

    after = fit_after(cursor.after, budget // _SUFFIX_PART - len(tokens.ids), count)
    return Gap(tokens=tokens, after=tokenizer.encode(after, parse_special=False)) if after else None


def encode_context(packed: PackedContext, tokenizer: Tokenizer, gap: Gap | None = None) -> list[int]:
    """Token ids of a packed context: the end-of-text token between files, as in training, none at the end.

    With a gap, the last file stands around it. Names of special tokens inside the files stay ordinary text. What the
    tokenizer's post-processor puts before every text comes first.
    """
    separator = _separator(tokenizer)
    pieces = packed.pieces
    if gap is not None:
        header, before = pieces[-1].split("\n", 1)  # names of files have no line breaks
        pieces = (*pieces[:-1], f"{header}\n", before)
    rows = tokenizer.encode_batch(pieces, parse_special=False)
    if gap is not None:
        before_gap = rows.pop()
        rows[-1] += gap.tokens.prompt(before_gap, gap.after)
    return [*tokenizer.around[0]] + [token for n, ids in enumerate(rows) for token in ((separator if n else []) + ids)]


def _separator(tokenizer: Tokenizer) -> list[int]:
    return list(tokenizer.eos_ids[:1])


def _budget(wanted: int | None, options: ModelOptions, max_tokens: int) -> int:
    """Tokens for the context; ValueError when the model has no room for what was asked."""
    room = options.context() - max_tokens
    if room < 1 or (wanted is not None and not 1 <= wanted <= room):
        asked = f"--max-context-tokens is {wanted}" if room >= 1 else f"--max-tokens is {max_tokens}"
        raise ValueError(
            f"{asked}; the model {options.model} holds {options.context()} tokens, context and completion "
            f"together{f', which leaves 1 to {room} for the context' if room >= 1 else ''}"
        )
    return min(DEFAULT_CONTEXT_TOKENS, room) if wanted is None else wanted


def _pack(cursor: Cursor, root: Path | None, tokenizer: Tokenizer, budget: int) -> PackedContext:
    from indexshare.repository.context import pack_context
    from indexshare.repository.source_tree import read_tree
    from indexshare.text.tokenizer import file_header

    # A new file alone in its folder is no mistake; a folder that was named and holds no text is one.
    near = cursor.path.parent
    with Status() as status:
        tree = read_tree(near if root is None else root, may_be_empty=root is None, near=near, progress=status)
        status("choosing among", plural(len(tree.files), "file"))
        return pack_context(
            tree.files,
            target_name=tree.name_of(cursor.path),
            before_cursor=cursor.before,
            budget=budget,
            count_tokens=lambda text: len(tokenizer.encode(text, parse_special=False)),
            header=file_header,
            separator_tokens=len(_separator(tokenizer)),
            skipped=tree.skipped,
            steady=True,
        )


def _announce(cursor: Cursor, packed: PackedContext, gap: Gap | None) -> None:
    """Before the long work: what is in the context and what is not."""
    cut = packed.files[0]
    note(
        f"{cursor.path}:{cursor.line}:{cursor.column}: {plural(packed.tokens, 'token')} of context, "
        f"{plural(len(packed.files), 'file')}, {len(packed.left_out)} left out for lack of room"
        + (f", {cut.name} cut to {cut.lines} of {cut.total_lines} lines" if cut.lines < cut.total_lines else "")
        + (f"; {plural(len(gap.after), 'token')} after the cursor" if gap is not None else "")
    )
    for line in _skip_lines(packed.skipped):
        note(line)


def _skip_lines(skipped: tuple[SkippedFile, ...]) -> list[str]:
    """What could not be read; hidden, generated and empty entries are not worth a line each."""
    unread = [entry for entry in skipped if not entry.routine]
    lines = [f"skipped {entry.name}: {entry.reason}" for entry in unread[:_SHOWN_SKIPS]]
    if len(unread) > _SHOWN_SKIPS:
        lines.append(f"skipped {len(unread) - _SHOWN_SKIPS} more (all of them with --json)")
    return lines
