"""Models without weights for testing the engine: exact arithmetic, so every difference is the engine's."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from indexshare.cache.paged import PagedCache
from indexshare.cache.view import BatchView
from indexshare.config import ModelConfig, preset
from indexshare.config.layers import INDEX_KEYS
from indexshare.config.mla import LATENTS
from indexshare.engine.core import Engine
from indexshare.text.tokenizer import Tokenizer

TINY = preset("tiny")


class HashModel(nn.Module):
    """The next token is a hash of all tokens before it, each of them read from the cache.

    A token not written, written to a wrong slot, or overwritten by another sequence changes the hash.
    """

    def __init__(self, config: ModelConfig = TINY) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(1, 1)
        self.rows_per_step: list[int] = []

    def trunk(self, token_ids: Tensor, view: BatchView, *, full_attention_below: int = 0) -> Tensor:
        self.rows_per_step.append(len(token_ids))
        x = token_ids[:, None].float().expand(-1, self.config.latent_dim)
        keys = view.positions[:, None].float().expand(-1, self.config.index_head_dim)
        view.write(0, LATENTS, x)
        view.write(0, INDEX_KEYS, keys)
        hidden = []
        for i, span in enumerate(view.spans):
            assert torch.equal(view.read(0, INDEX_KEYS, i)[:, 0], torch.arange(float(span.total)))
            past = view.read(0, LATENTS, i)[:, 0].long()
            weights = (torch.arange(span.total) * 7919 + 13) % 10007
            hidden.append(((past + 1) * weights).cumsum(0)[span.past :])
        return torch.cat(hidden)[:, None]

    def logits(self, hidden: Tensor) -> Tensor:
        vocab = torch.arange(self.config.vocab_size)
        return ((hidden * 31 + vocab * 7001 + vocab * hidden % 97) % 1009).float() / 100


class ScriptModel(HashModel):
    """Says `script` whatever the prompt, which must have `prompt_len` tokens; then end of text."""

    def __init__(self, config: ModelConfig, script: Sequence[int], prompt_len: int = 1) -> None:
        super().__init__(config)
        self.script = [0] * (prompt_len - 1) + [*script, *config.eos_token_ids[:1]]

    def trunk(self, token_ids: Tensor, view: BatchView, *, full_attention_below: int = 0) -> Tensor:
        return view.positions[:, None]

    def logits(self, hidden: Tensor) -> Tensor:
        said = [self.script[min(int(p), len(self.script) - 1)] for p in hidden[:, 0]]
        return nn.functional.one_hot(torch.tensor(said), self.config.vocab_size).float()


class BrokenModel(HashModel):
    """Gives NaN from the token 99 of a sequence on; raises when told to."""

    def __init__(self, config: ModelConfig = TINY) -> None:
        super().__init__(config)
        self.failure: Callable[[], BaseException] | None = None

    def trunk(self, token_ids: Tensor, view: BatchView, *, full_attention_below: int = 0) -> Tensor:
        hidden = super().trunk(token_ids, view)
        if self.failure is not None:
            raise self.failure()
        seen = [(view.read(0, LATENTS, i)[:, 0] == 99).cumsum(0) > 0 for i in range(len(view.spans))]
        rows = torch.cat([bad[s.past :, None] for s, bad in zip(view.spans, seen, strict=True)])
        return torch.where(rows, torch.nan, hidden.double())

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.where(hidden.isnan(), torch.nan, super().logits(hidden.nan_to_num().long()))


def make_engine(
    model: HashModel | None = None,
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    token_budget: int = 64,
    tokenizer: Tokenizer | None = None,
    **settings: Any,
) -> Engine:
    """An engine around a fake model."""
    model = HashModel() if model is None else model
    cache = PagedCache(model.config, num_blocks, block_size)
    return Engine(model, cache, token_budget=token_budget, tokenizer=tokenizer, **settings)
