"""Models whose predictions are known: the head is the identity, so a trunk returns logits."""

import re

import torch
from torch import Tensor, nn

from indexshare.cache.view import BatchView
from indexshare.config import preset
from indexshare.model.draft.mtp import DraftState
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.observe import Observer
from indexshare.model.selection import Selection
from indexshare.model.selectors import Selector, recent
from indexshare.text.tokenizer import Tokenizer

SURE = 12.0  # a logit that leaves little to the others


class FakeModel(GlmMoeDsa):
    """Every logit zero. Subclasses say what follows each token of one sequence."""

    def __init__(self, tokenizer: Tokenizer, **changes: int) -> None:
        size = tokenizer.vocab_size
        super().__init__(preset("tiny").replace(vocab_size=size, index_topk=64, **changes))
        self.tokenizer = tokenizer
        self.lm_head = nn.Linear(size, size, bias=False)
        nn.init.eye_(self.lm_head.weight)
        self.embed_tokens = nn.Embedding(size, size)
        nn.init.eye_(self.embed_tokens.weight)
        self.mtp = None
        self.eval()

    def follow(self, ids: list[int], sight: int) -> Tensor:
        """Logits `[len(ids), V]` when each token sees `sight` tokens, itself included."""
        return torch.zeros(len(ids), self.config.vocab_size)

    def trunk(
        self, token_ids: Tensor, view: BatchView, *, full_attention_below: int = 0,
        selector: Selector | None = None, observer: Observer | None = None,
    ) -> Tensor:  # fmt: skip
        self.check_ids(token_ids, view)
        parts = [part.tolist() for part in token_ids.split([span.length for span in view.spans])]
        near = selector is recent
        return torch.cat([self.follow(part, self.config.index_topk if near else len(part)) for part in parts])


class Answerer(FakeModel):
    """Reads the question, finds the assignment or the table entry in what it sees, and copies its digits."""

    QUESTION = re.compile(r"assert (?:settings\['(\w+)'\]|(\w+)) == (\d*)$")

    def follow(self, ids: list[int], sight: int) -> Tensor:
        logits = super().follow(ids, sight)
        for row in range(len(ids)):
            if match := self.QUESTION.search(self.tokenizer.decode(ids[max(0, row - 40) : row + 1])):
                key, name, begun = match.groups()
                seen = self.tokenizer.decode(ids[max(0, row + 1 - sight) : row + 1])
                entry = re.search(rf"'{key}': (\d+)" if key else rf"\b{name} = (\d+)", seen)
                if entry and entry[1].startswith(begun):
                    (digit,) = self.tokenizer.encode(entry[1][len(begun) :][:1] or "\n")
                    logits[row, digit] = SURE
        return logits


class Copier(FakeModel):
    """Continues with what followed the longest match of its last tokens earlier in the sequence."""

    LONGEST = 6

    def follow(self, ids: list[int], sight: int) -> Tensor:
        logits = super().follow(ids, sight)
        for row in range(1, len(ids)):
            for size in range(min(self.LONGEST, row), 0, -1):
                end = ids[row + 1 - size : row + 1]
                starts = range(row - size, -1, -1)
                if found := [i for i in starts if ids[i : i + size] == end]:
                    logits[row, ids[found[0] + size]] = SURE
                    break
        return logits


class Successor(FakeModel):
    """Says the id after the current one. Its draft layer says the same, but for ids in `blind`."""

    def __init__(self, tokenizer: Tokenizer, blind: frozenset[int] = frozenset()) -> None:
        super().__init__(tokenizer)
        self.mtp = BlindDraft(blind)  # type: ignore[assignment]

    def follow(self, ids: list[int], sight: int) -> Tensor:
        return nn.functional.one_hot((torch.tensor(ids) + 1) % self.config.vocab_size, self.config.vocab_size).float()


class BlindDraft(nn.Module):
    """From the one-hot embedding of a token, the id after it; id 0 after tokens it is blind to."""

    def __init__(self, blind: frozenset[int]) -> None:
        super().__init__()
        self.blind = blind

    def forward(self, embeddings: Tensor, hidden: Tensor, view: BatchView) -> DraftState:
        ids = embeddings.argmax(-1)
        seen = torch.tensor([i not in self.blind for i in ids.tolist()])
        said = torch.where(seen, (ids + 1) % embeddings.shape[1], 0)
        empty = torch.empty(0, dtype=torch.int64)
        return DraftState(nn.functional.one_hot(said, embeddings.shape[1]).float(), Selection(0, empty, empty, empty))

    def step(self, embeddings: Tensor, state: DraftState, view: BatchView, step: int) -> DraftState:
        return self(embeddings, state.hidden, view)
