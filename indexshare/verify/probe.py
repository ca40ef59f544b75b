"""A text that shows differences: random tokens, more than a query selects, no choice being a matter of rounding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from indexshare.config.model import ModelConfig
from indexshare.verify.forward import PlainForward

BEYOND = 24  # tokens after the first `index_topk`
LEAST = 12  # of them, in which a fault of the selection shows
CLEAR = 1e-5  # gaps (`Trace.margin`) that rounding in float32 does not close
_TEXTS = 8  # drawn at most


def check_length(config: ModelConfig, count: int) -> None:
    """Refuse a text of so many tokens in which the selection does not show.

    Raises:
        ValueError: it is hardly longer than `index_topk`.
    """
    if count < config.index_topk + LEAST:
        raise ValueError(
            f"the text has {count} tokens, index_topk is {config.index_topk}: with fewer than "
            f"{config.index_topk + LEAST} nothing of the selection can be seen; give a longer text or a smaller --topk"
        )


def probe_length(config: ModelConfig, tokens: int | None = None) -> int:
    """Tokens of the text: `tokens`, or `BEYOND` more than `index_topk`.

    Raises:
        ValueError: too few for the selection to matter, or more than the model's context.
    """
    count = config.index_topk + BEYOND if tokens is None else tokens
    check_length(config, count)
    if count > config.max_position_embeddings:
        raise ValueError(
            f"{count} tokens are needed to see the selection, the model's context is {config.max_position_embeddings}; "
            "give a smaller --topk"
        )
    return count


def probe_tokens(
    forward: PlainForward,
    *,
    tokens: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Random token ids, int64 `[index_topk + BEYOND]` unless `tokens` says otherwise; the same for the same seed.

    Of a few texts, the first in which no choice of tokens or experts hangs on rounding, else the clearest one.

    Args:
        forward: the model.
        tokens, seed: length and choice of the text.
        progress: told after each text that was looked at.

    Raises:
        ValueError: the model's context is too short for its own selection to matter.
    """
    count, generator = probe_length(forward.config, tokens), torch.Generator().manual_seed(seed)
    best, clearest = torch.zeros(0, dtype=torch.int64), -1.0
    for number in range(_TEXTS):
        ids = torch.randint(forward.config.vocab_size, (count,), generator=generator)
        margin = forward(ids).margin
        if progress is not None:
            progress(number + 1, _TEXTS)
        if not margin <= clearest:  # NaN of a damaged model ends the search
            best, clearest = ids, margin
        if not margin < CLEAR:
            break
    return best
