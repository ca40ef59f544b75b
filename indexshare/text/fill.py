"""Tokens for filling in the middle: a prompt of what stands before a gap and after it, and whether a model knows them.

The names are those of the GLM family (`<|code_prefix|>` and so on), and of others whose models come with them. The
tokenizers trained here have the names from the beginning, so that they say nothing about the model: one that was
trained on such rows says so in `tokenizer_config.json` (`fill_in_the_middle`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from indexshare.text.tokenizer import Tokenizer

SETTING = "fill_in_the_middle"
_OURS = ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>")
_OTHERS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
)


@dataclass(frozen=True, kw_only=True)
class FillTokens:
    """Ids of the three tokens; `suffix_first` is the order of a prompt."""

    prefix: int
    suffix: int
    middle: int
    suffix_first: bool = True

    def prompt(self, before: Sequence[int], after: Sequence[int], *, suffix_first: bool | None = None) -> list[int]:
        """Ids of a prompt, after which the middle follows, and then the end of text.

        With the suffix first the text before the gap stands at the end: the middle goes on from it, and when something
        is typed there, all that stands before it is known already.

        Args:
            before, after: ids of the text on both sides.
            suffix_first: the order; the model's own unless given.
        """
        head, tail = [self.prefix, *before], [self.suffix, *after]
        first = self.suffix_first if suffix_first is None else suffix_first
        return [*tail, *head, self.middle] if first else [*head, *tail, self.middle]

    @property
    def ids(self) -> tuple[int, int, int]:
        """All three: none of them belongs into a middle."""
        return self.prefix, self.suffix, self.middle


def fill_tokens(tokenizer: Tokenizer) -> FillTokens | None:
    """The tokens of the GLM family, learned or not; None where the vocabulary lacks them."""
    return _found(tokenizer, _OURS, suffix_first=True)


def learned_fill(tokenizer: Tokenizer) -> FillTokens | None:
    """The tokens by which the tokenizer's model fills gaps; None if it has not learned to.

    The names of other families are taken at their word; those that every tokenizer trained here has count where
    `tokenizer_config.json` says so.
    """
    if tokenizer.settings.get(SETTING) is True:
        return fill_tokens(tokenizer)
    found = (_found(tokenizer, names, suffix_first=False) for names in _OTHERS)
    return next((tokens for tokens in found if tokens is not None), None)


def _found(tokenizer: Tokenizer, names: tuple[str, str, str], *, suffix_first: bool) -> FillTokens | None:
    if any(name not in tokenizer.added_tokens for name in names):
        return None
    prefix, suffix, middle = (tokenizer.added_tokens[name] for name in names)
    return FillTokens(prefix=prefix, suffix=suffix, middle=middle, suffix_first=suffix_first)
