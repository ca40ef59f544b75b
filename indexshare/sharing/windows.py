"""Windows of a text: the same rows for everything that is compared on them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from indexshare.config.model import ModelConfig
from indexshare.data.splitting import Document
from indexshare.text.files import plural
from indexshare.text.tokenizer import Tokenizer


def take_windows(
    tokenizer: Tokenizer, documents: Sequence[Document], *, length: int, most: int, wanted: int | None, seed: int
) -> Tensor:
    """Rows of consecutive tokens, int64 `[count, length]`: files in an order drawn by the seed, one behind the other.

    Only as many files are read into tokens as the windows need.

    Args:
        tokenizer: of the model.
        documents: the text.
        length: tokens of a row.
        most: rows where none are asked for, or fewer if the text ends before.
        wanted: rows; None for `most`.
        seed: of the order of the files.

    Raises:
        ValueError: the text has fewer windows than were asked for, or none.
    """
    count = most if wanted is None else wanted
    if count < 1:
        raise ValueError(f"--windows is {count}; expected 1 or more")
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    ids: list[int] = []
    for number in order:
        if len(ids) >= count * length:
            break
        ids += [*tokenizer.encode(documents[number].headed, parse_special=False), tokenizer.end_id]
    fitting = min(count, len(ids) // length)
    if fitting < (wanted or 1):
        raise ValueError(
            f"the text has {len(ids):,} tokens, enough for {plural(fitting, 'window')} of {length:,} where {count} "
            "are wanted; give more text (--text, --packages), fewer --windows, or shorter ones"
        )
    return torch.tensor(ids[: fitting * length]).view(fitting, length)


def check_shows_attention(config: ModelConfig) -> None:
    """Refuse (ValueError) models whose attention cannot be looked at."""
    kind = config.variant.attention.kind
    if kind != "mla":
        raise ValueError(f"what layers attend to is seen in latent attention (mla) alone; this model's is {kind!r}")


def check_window(config: ModelConfig, length: int) -> None:
    """Refuse (ValueError) windows that the model does not read, or in which nothing is selected; and such models."""
    if not config.selects:
        raise ValueError("the model attends to everything and has no indexers; take a checkpoint with an indexer")
    context, topk = config.max_position_embeddings, config.index_topk
    if not topk < length <= context:
        why = "the model's context" if length > context else "up to which everything is attended, so nothing is chosen"
        limit = context if length > context else topk
        raise ValueError(f"windows of {length:,} tokens against {limit:,}, {why}; give {topk + 1:,} to {context:,}")
