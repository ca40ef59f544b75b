"""How often the draft layer says what the trunk says, step by step, on held-out text.

Slot i of the draft layer holds the hidden state of token i and the embedding of token i + 1; step j predicts token
i + 1 + j and is compared with the trunk's own most likely token there. The tokens in between are those of the text, for
trunk and draft layer alike. Greedy speculative decoding reads the trunk's tokens there instead. It would accept step j
where all steps up to j agree, and this is seen exactly at the slots where the text goes the trunk's way in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indexshare.cache.view import InFlightView
from indexshare.data.splitting import Document
from indexshare.eval.bootstrap import Estimate, ratio
from indexshare.eval.forward import Progress, batches, check_length, counter, hidden_states, predictions
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import END_OF_TEXT, Tokenizer

DEFAULT_TOKENS = 65_536
DEFAULT_LENGTH = 2048


@dataclass(frozen=True, kw_only=True)
class DraftReport:
    """Agreement of draft layer and trunk, with intervals over files.

    Attributes:
        files, tokens: what was scored.
        max_tokens: longest stretch of a file; longer files are scored in stretches.
        agreement: by step, part of the slots at which the draft's most likely token is the trunk's.
        accepted: by step, part of the slots at which this and all earlier steps agree, among those whose tokens in
            between are the trunk's own: what greedy speculative decoding would accept there. None without such slots.
        trunk_right: part of the tokens that the trunk itself predicts; for comparison.
    """

    files: int
    tokens: int
    max_tokens: int
    agreement: tuple[Estimate, ...]
    accepted: tuple[Estimate | None, ...]
    trunk_right: Estimate


def check_draft(model: GlmMoeDsa) -> None:
    """Refuse (ValueError) a model without a draft layer."""
    if model.mtp is None:
        raise ValueError("the model has no draft layer (num_nextn_predict_layers is 0): leave out the suite `draft`")


def evaluate_draft(
    model: GlmMoeDsa,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    steps: int = 2,
    length: int | None = None,
    max_tokens: int = DEFAULT_TOKENS,
    progress: Progress | None = None,
) -> DraftReport:
    """Run trunk and draft layer over held-out files and compare what they say next.

    Args:
        model: in evaluation mode, with a draft layer.
        tokenizer: the model's.
        documents: text the model was not trained on.
        steps: draft steps.
        length: longest stretch; `DEFAULT_LENGTH`, or what the model reads, unless given.
        max_tokens: most tokens to score: the first stretch of every file, then the second of every file that has one,
            and so on.
        progress: told (tokens done, tokens in all).

    Raises:
        ValueError: the model has no draft layer, no document is long enough, or a bad `steps`, `length`, `max_tokens`.
    """
    check_draft(model)
    if length is None:
        length = min(DEFAULT_LENGTH, model.config.max_position_embeddings)
    check_length(model, length)
    if not 1 <= steps < length - 1 or max_tokens < steps + 2:
        raise ValueError(
            f"{steps} draft steps over {max_tokens} tokens in stretches of {length}; expected 1 step or more, "
            "and stretches of at least two tokens more than steps"
        )
    texts, owners = _stretches(tokenizer, documents, length, max_tokens, least=steps + 2)
    counts = torch.zeros(len(documents), 4, steps, dtype=torch.int64)
    right = torch.zeros(len(documents), 2, dtype=torch.int64)  # tokens, predicted by the trunk
    advance = counter(progress, sum(map(len, texts)))
    for batch in batches([len(text) for text in texts]):
        part, files = [texts[i] for i in batch], [owners[i] for i in batch]
        for file, (slots, hits) in zip(files, _count(model, part, steps), strict=True):
            counts[file] += slots
            right[file] += hits
        if advance is not None:
            advance(sum(map(len, part)))
    return DraftReport(
        files=int((right[:, 0] > 0).sum()),
        tokens=sum(map(len, texts)),
        max_tokens=length,
        agreement=tuple(_part(counts[:, 1, j], counts[:, 0, j]) for j in range(steps)),
        accepted=tuple(
            _part(counts[:, 3, j], counts[:, 2, j]) if counts[:, 2, j].any() else None for j in range(steps)
        ),
        trunk_right=_part(right[:, 1], right[:, 0]),
    )


def _count(model: GlmMoeDsa, texts: Sequence[Sequence[int]], steps: int) -> list[tuple[Tensor, Tensor]]:
    """Of each text the counts of `_agreement`, and its tokens and how many of them the trunk predicts, int64 `[2]`."""
    hidden, view = hidden_states(model, texts)
    said = torch.tensor(predictions(model, hidden))
    drafts = _draft(model, texts, hidden, view, steps)
    result = []
    for span, text in zip(view.spans, texts, strict=True):
        rows, ids = slice(span.start, span.stop), torch.tensor(text)
        hits = said[rows][:-1] == ids[1:]
        result.append((_agreement(said[rows], drafts[:, rows], ids), torch.tensor([len(hits), int(hits.sum())])))
    return result


def _part(hits: Tensor, slots: Tensor) -> Estimate:
    """Hits per slot over the files that have slots."""
    there = slots > 0
    return ratio(hits[there].tolist(), slots[there].tolist())


def _stretches(
    tokenizer: Tokenizer, documents: Sequence[Document], length: int, max_tokens: int, *, least: int
) -> tuple[list[list[int]], list[int]]:
    """Token ids of stretches of at most `length` tokens, and the number of the file of each."""
    end = tokenizer.id_of(END_OF_TEXT)
    rows = tokenizer.encode_batch([document.headed for document in documents], parse_special=False)
    found = [
        (start, number, [*row, end][start : start + length])
        for number, row in enumerate(rows)
        for start in range(0, len(row) + 1, length)
    ]
    texts, owners, left = list[list[int]](), list[int](), max_tokens
    for _, number, ids in sorted(found, key=lambda item: item[:2]):
        ids = ids[:left]
        if len(ids) >= least:
            texts.append(ids)
            owners.append(number)
            left -= len(ids)
    if not texts:
        raise ValueError(f"no document has {least} tokens or more; nothing to draft on")
    return texts, owners


@torch.no_grad()
def _draft(model: GlmMoeDsa, texts: Sequence[Sequence[int]], hidden: Tensor, view: InFlightView, steps: int) -> Tensor:
    """Most likely token of each step at each slot, int64 `[steps, N]`; the last slots of a text lack their tokens."""
    assert model.mtp is not None
    said, state = [], None
    for step in range(1, steps + 1):
        # Past the end of a text there is no token: any will do, those slots are not counted and no other sees them.
        ahead = torch.tensor([token for text in texts for token in [*text[step:], *text[:step]]], device=hidden.device)
        embeddings = model.embed_tokens(ahead)
        state = model.mtp(embeddings, hidden, view) if state is None else model.mtp.step(embeddings, state, view, step)
        said.append(predictions(model, state.hidden))
    return torch.tensor(said)


def _agreement(trunk: Tensor, drafts: Tensor, ids: Tensor) -> Tensor:
    """Counts by step, int64 `[4, steps]`, of one text.

    They are: slots; slots where the step agrees; slots where the text goes the trunk's way up to the step; and those of
    the latter where this step and all before it agree.

    Shapes: trunk int64 `[S]`, what it predicts after each token; drafts int64 `[steps, S]`; ids int64 `[S]`, the text.
    """
    steps, length = drafts.shape
    slots = length - steps  # at these every step has its token and the trunk's answer
    said = [trunk[j + 1 : j + 1 + slots] for j in range(steps)]  # what step j + 1 is compared with
    agree = torch.stack([drafts[j, :slots] == said[j] for j in range(steps)])
    # Step j + 1 reads tokens i + 2 to i + j + 1; what step j is compared with is the trunk's own token i + j + 1.
    follows = [torch.ones(slots, dtype=torch.bool)]
    for j in range(1, steps):
        follows.append(follows[-1] & (ids[j + 1 : j + 1 + slots] == said[j - 1]))
    path = torch.stack(follows)
    together = agree.long().cumprod(0).bool()
    return torch.stack([torch.full((steps,), slots), agree.sum(1), path.sum(1), (path & together).sum(1)])
