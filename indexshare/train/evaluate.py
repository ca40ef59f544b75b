"""Bits per byte on held-out text: quick on windows while training, and file by file for the record."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from indexshare.cache.view import InFlightView
from indexshare.data.corpus import TokenCorpus
from indexshare.data.sources import PackedText
from indexshare.data.splitting import Document
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.selection import FULL_ATTENTION
from indexshare.text.tokenizer import Tokenizer, file_header
from indexshare.train.losses import next_token_loss
from indexshare.train.workers import Workers

_ROWS_AT_ONCE = 8192  # tokens per forward pass in evaluations


def held_out_bits_per_byte(
    model: GlmMoeDsa,
    corpus: TokenCorpus,
    *,
    length: int,
    windows: int,
    full_attention: bool,
    workers: Workers | None = None,
) -> float:
    """Bits per byte over fixed windows of a held-out corpus, each scored from its own start.

    Args:
        model: any mode; left as it is.
        corpus: held-out text.
        length: tokens per window.
        windows: how many; the same ones at every call.
        full_attention: attend to everything before, instead of the selection.
        workers: score windows side by side.
    """
    device = model.embed_tokens.weight.device
    source = PackedText(corpus, seed=0)
    rows = torch.stack([torch.from_numpy(source.window(length + 1)) for _ in range(windows)])

    @torch.no_grad()  # holds for one thread only
    def score(part: torch.Tensor) -> float:
        tokens = part.to(device)
        view = InFlightView([length] * len(tokens), device)
        below = FULL_ATTENTION if full_attention else 0
        hidden = model.trunk(tokens[:, :-1].reshape(-1), view, full_attention_below=below)
        return float(next_token_loss(hidden, model.lm_head.weight, tokens[:, 1:].reshape(-1), count=1))

    total = sum((workers or Workers(1)).map(score, rows.split(max(1, _ROWS_AT_ONCE // length))))
    nats_per_token = total / rows[:, 1:].numel()
    return nats_per_token / math.log(2) * len(corpus) / corpus.num_bytes


@torch.no_grad()
def bits_by_file(
    model: GlmMoeDsa,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    max_tokens: int,
    full_attention: bool = False,
) -> list[tuple[int, float]]:
    """Bytes and bits of each document, scored alone under its file line; the line itself does not count.

    A file longer than `max_tokens` is scored in stretches of that length, each from its own start.

    Raises:
        ValueError: `max_tokens` leaves no room after a document's file line.
    """
    device = model.embed_tokens.weight.device
    result = []
    for document in documents:
        header = tokenizer.encode(file_header(document.name), parse_special=False)
        if len(header) >= max_tokens:
            raise ValueError(
                f"max_tokens is {max_tokens}, the file line of {document.name!r} alone takes {len(header)} tokens; "
                "give a longer context"
            )
        body = tokenizer.encode(document.text, parse_special=False)
        bits = 0.0
        for start in range(0, len(body), max_tokens - len(header)):
            piece = body[start : start + max_tokens - len(header)]
            ids = torch.tensor([*header, *piece], device=device)
            view = InFlightView([len(ids) - 1], device)
            hidden = model.trunk(ids[:-1], view, full_attention_below=FULL_ATTENTION if full_attention else 0)
            first = len(header) - 1
            loss = next_token_loss(hidden[first:], model.lm_head.weight, ids[1 + first :], count=1)
            bits += float(loss) / math.log(2)
        result.append((len(document.text.encode("utf-8")), bits))
    return result
