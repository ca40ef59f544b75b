"""Whole texts through a model, in batches, under three kinds of attention.

`selection` is the model as it is. `full` attends to everything before. `recent` replaces the selection by the most
recent `index_topk` tokens: what it still gets right needs no search, so it is the floor for every retrieval figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from indexshare.cache.view import InFlightView
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.selection import FULL_ATTENTION
from indexshare.model.selectors import recent
from indexshare.train.losses import token_losses

SELECTION, FULL, RECENT = "selection", "full", "recent"
ATTENTION = (SELECTION, FULL, RECENT)
_LOGIT_BYTES = 16 << 20  # of logits held at once
TOKENS_AT_ONCE = 8192  # of short texts in one forward pass; a longer text goes alone

Progress = Callable[[int, int], None]  # (tokens done, tokens in all)


def check_attention(names: Sequence[str]) -> None:
    """Refuse (ValueError) an empty list and unknown kinds of attention."""
    unknown = [name for name in names if name not in ATTENTION]
    if unknown or not names:
        raise ValueError(f"attention is {','.join(names) or 'empty'!r}; expected some of {', '.join(ATTENTION)}")


def distinct_kinds(model: GlmMoeDsa, names: Sequence[str]) -> tuple[str, ...]:
    """Those kinds of attention that differ in a model: where every token is attended to there is one, `full`.

    Raises:
        ValueError: an unknown kind, or a control for a selection that the model has not.
    """
    check_attention(names)
    if model.config.selects:
        return tuple(names)
    if set(names) == {RECENT}:
        raise ValueError(f"attention is {RECENT!r}, but the model attends to everything; expected {FULL!r}")
    return (FULL,)


def check_length(model: GlmMoeDsa, length: int) -> None:
    """Refuse (ValueError) a length in tokens that the model's context does not hold."""
    context = model.config.max_position_embeddings
    if not 2 <= length <= context:
        raise ValueError(f"a length is {length} tokens; this model reads 2 to {context}")


def batches(sizes: Sequence[int]) -> Iterator[range]:
    """Consecutive texts, as index ranges, of at most `TOKENS_AT_ONCE` tokens together or one text."""
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and total + size > TOKENS_AT_ONCE:
            yield range(start, i)
            start, total = i, 0
        total += size
    if sizes:
        yield range(start, len(sizes))


def counter(progress: Progress | None, total: int) -> Callable[[int], None] | None:
    """What `token_bits` calls after each batch, told as (tokens done, tokens in all) to `progress`."""
    if progress is None:
        return None
    report, done = progress, 0

    def advance(tokens: int) -> None:
        nonlocal done
        done = min(done + tokens, total)
        report(done, total)

    return advance


@torch.no_grad()
def hidden_states(
    model: GlmMoeDsa, texts: Sequence[Sequence[int]], attention: str = SELECTION
) -> tuple[Tensor, InFlightView]:
    """Hidden rows `[N, hidden]` of texts (token ids), each from its own start, one after the other; and their view.

    Raises:
        ValueError: an unknown kind of attention, an empty text, or one that the model's context does not hold.
    """
    distinct_kinds(model, [attention])
    device = model.embed_tokens.weight.device
    view = InFlightView([len(text) for text in texts], device)
    ids = torch.tensor([token for text in texts for token in text], dtype=torch.int64, device=device)
    selector = recent if attention == RECENT else None
    hidden = model.trunk(ids, view, full_attention_below=FULL_ATTENTION if attention == FULL else 0, selector=selector)
    return hidden, view


def token_bits(
    model: GlmMoeDsa,
    texts: Sequence[Sequence[int]],
    attention: str = SELECTION,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Bits of every token but the first of each text, float64 `[len(text) - 1]` on the CPU.

    Args:
        texts: token ids, at least two each.
        attention: one of `ATTENTION`.
        progress: told the tokens of each finished batch.

    Raises:
        ValueError: as for `hidden_states`.
    """
    result: list[Tensor] = []
    for batch in batches([len(text) for text in texts]):
        part = [texts[i] for i in batch]
        hidden, _ = hidden_states(model, [text[:-1] for text in part], attention)
        targets = torch.tensor([token for text in part for token in text[1:]], device=hidden.device)
        losses = token_losses(hidden, model.lm_head.weight, targets)
        bits = losses.double().cpu() / torch.log(torch.tensor(2.0, dtype=torch.float64))
        result += bits.split([len(text) - 1 for text in part])
        if progress is not None:
            progress(sum(map(len, part)))
    return result


@torch.no_grad()
def predictions(model: GlmMoeDsa, hidden: Tensor, rows: Sequence[int] | None = None) -> list[int]:
    """The most likely next token after each of the given rows of `hidden` (all of them unless given)."""
    chosen = hidden if rows is None else hidden[torch.tensor(rows, dtype=torch.int64, device=hidden.device)]
    at_once = max(1, _LOGIT_BYTES // (4 * model.config.vocab_size))
    return [int(token) for part in chosen.split(at_once) for token in model.logits(part).argmax(-1).tolist()]
