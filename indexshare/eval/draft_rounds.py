"""Rounds of drafts as the engine runs them: the tokens that one gives, by drafter, temperature and kind of text.

`draft.py` compares what trunk and draft layer say along a given text. Here the model writes, and drafts are verified by
the rule that speculative decoding follows (`engine/drafting/acceptance.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from indexshare.data.splitting import Document
from indexshare.engine.drafting.build import DRAFTERS, check
from indexshare.engine.llm import LLM
from indexshare.engine.outputs import RequestStats
from indexshare.engine.params import SamplingParams
from indexshare.eval.bootstrap import Estimate, ratio
from indexshare.eval.forward import Progress, counter
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import Tokenizer

DEFAULT_FILES = 12
DEFAULT_CONTEXT = 1024
DEFAULT_DRAFTS = 4
DEFAULT_TEMPERATURES = (0.0, 1.0)
WRITTEN = 64  # tokens behind each prompt
_LEAST = 16  # tokens of a prompt
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """What one drafter's drafts were good for at one temperature, in texts of one kind.

    Attributes:
        drafter, temperature: how was drafted and drawn.
        kind: ending of the files' names, `ALL` for all of them.
        prompts, rounds: how many files were continued, and how many steps verified drafts.
        accepted_length: tokens of a round, the one behind the drafts included; None without rounds.
        tokens_per_step: tokens written for each step of the trunk, steps without drafts included.
        places: accepted part of the drafts at each place of a round; places behind a wrong draft count as wrong.
    """

    drafter: str
    temperature: float
    kind: str
    prompts: int
    rounds: int
    accepted_length: Estimate | None
    tokens_per_step: Estimate
    places: tuple[Estimate, ...]


def evaluate_rounds(
    model: GlmMoeDsa,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    temperatures: Sequence[float] = DEFAULT_TEMPERATURES,
    drafts: int = DEFAULT_DRAFTS,
    files: int = DEFAULT_FILES,
    context: int | None = None,
    written: int = WRITTEN,
    progress: Progress | None = None,
) -> list[Rounds]:
    """Continue the openings of files with drafts, once for each drafter and temperature.

    Args:
        model: in evaluation mode, with a draft layer.
        tokenizer: the model's.
        documents: text the model was not trained on.
        temperatures: 0 or more each.
        drafts: guessed in a round.
        files: most files, taken evenly from all of them.
        context: tokens of a prompt: `DEFAULT_CONTEXT`, or what leaves the model room to write, unless given; half of a
            shorter file.
        written: tokens behind each prompt.
        progress: told (tokens done, tokens in all).

    Raises:
        ValueError: a setting out of range, or no file that is long enough.
    """
    context = check_rounds(
        model, temperatures=temperatures, drafts=drafts, files=files, context=context, written=written
    )  # fmt: skip
    kinds, prompts = _prompts(tokenizer, documents, files, context)
    advance = counter(progress, len(DRAFTERS) * len(temperatures) * len(prompts) * written)
    found: list[Rounds] = []
    for drafter in DRAFTERS:
        llm = LLM(
            model, tokenizer=tokenizer, max_context=context + written, cache_tokens=4 * (context + written),
            draft_tokens=drafts, drafter=drafter,
        )  # fmt: skip
        for temperature in temperatures:
            stats = []
            for number, prompt in enumerate(prompts):
                params = SamplingParams(max_tokens=written, temperature=temperature, seed=number, ignore_eos=True)
                stats.append(llm.generate([prompt], params)[0].stats)
                if advance is not None:
                    advance(written)
            found += _by_kind(drafter, temperature, kinds, stats)
    return found


def check_rounds(
    model: GlmMoeDsa, *, temperatures: Sequence[float], drafts: int, files: int, context: int | None,
    written: int = WRITTEN,
) -> int:  # fmt: skip
    """The tokens of a prompt; ValueError for settings that `evaluate_rounds` refuses."""
    for temperature in temperatures:
        SamplingParams(temperature=temperature)  # says what is wrong with it
    check(drafts, "mtp")
    room = model.config.max_position_embeddings - written
    context = min(DEFAULT_CONTEXT, room) if context is None else context
    if drafts < 1 or files < 1 or not _LEAST <= context <= room:
        raise ValueError(
            f"{drafts} drafts, {files} files, {context} tokens of context; expected at least 1 draft and 1 file, "
            f"and {_LEAST} to {room} tokens (what the model reads, less {written} to be written)"
        )
    return context


def _prompts(
    tokenizer: Tokenizer, documents: Sequence[Document], files: int, context: int
) -> tuple[list[str], list[list[int]]]:
    """Kind and opening of some files that are evenly spread over those long enough."""
    rows = tokenizer.encode_batch([document.headed for document in documents], parse_special=False)
    fit = [
        (PurePosixPath(document.name).suffix or document.name, row[: min(context, len(row) // 2)])
        for document, row in zip(documents, rows, strict=True)
        if len(row) >= 2 * _LEAST
    ]
    if not fit:
        raise ValueError(f"no document has {2 * _LEAST} tokens or more; nothing to continue")
    count = min(files, len(fit))
    chosen = [fit[number * len(fit) // count] for number in range(count)]
    return [kind for kind, _ in chosen], [row for _, row in chosen]


def _by_kind(drafter: str, temperature: float, kinds: Sequence[str], stats: Sequence[RequestStats]) -> Iterable[Rounds]:
    """A row for all texts, and where there are several kinds one for each."""
    several = sorted(set(kinds)) if len(set(kinds)) > 1 else []
    for kind in (ALL, *several):
        those = [one for name, one in zip(kinds, stats, strict=True) if kind in (ALL, name)]
        drafted = [one for one in those if one.draft_rounds]
        yield Rounds(
            drafter=drafter,
            temperature=temperature,
            kind=kind,
            prompts=len(those),
            rounds=sum(one.draft_rounds for one in drafted),
            accepted_length=_per_round([one.draft_rounds + one.accepted_tokens for one in drafted], drafted),
            tokens_per_step=ratio(
                [one.completion_tokens for one in those], [one.completion_tokens - one.accepted_tokens for one in those]
            ),
            places=tuple(_places(drafted)),
        )


def _per_round(numbers: Sequence[float], stats: Sequence[RequestStats]) -> Estimate | None:
    return ratio(numbers, [one.draft_rounds for one in stats]) if stats else None


def _places(stats: Sequence[RequestStats]) -> Iterable[Estimate]:
    """Accepted part by place, over the files that drafted so far ahead."""
    for place in range(max((len(one.drafted_by_place) for one in stats), default=0)):
        those = [one for one in stats if len(one.drafted_by_place) > place]
        yield ratio([one.accepted_by_place[place] for one in those], [one.drafted_by_place[place] for one in those])
