"""What is added to logits before a token is drawn: biases that were asked for, and -inf for what a structure forbids.

A grammar advances by the tokens that are part of the text, and by no others. What may come behind drafts, which may yet
be rejected, is found by going on from there and back again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from indexshare.engine.params import SamplingParams
from indexshare.text.answer_parser import END_THINK, TAGS
from indexshare.text.tokenizer import Tokenizer


class TokenBias:
    """Biases of one request as it grows.

    Args:
        base: float32 `[V]` for every token, None for nothing.
        thinking: the part with reasoning, None for a text without rules for it.
        grammar: an xgrammar matcher for what comes behind, None for any text.
    """

    def __init__(self, base: Tensor | None, thinking: ThinkingRule | None, grammar: Any, vocab_size: int) -> None:
        self._base, self._thinking, self._grammar = base, thinking, grammar
        self._vocab_size = vocab_size
        self._known = 0  # generated tokens that the grammar was told of, or that stand before its part

    def after(self, generated: Sequence[int], drafts: Sequence[int]) -> Tensor | None:
        """What is added to the logits of the token behind `generated` and `drafts`, float32 `[V]`; None for nothing."""
        if self._thinking is not None:
            end = self._thinking.end(generated, drafts)
            if end is None:
                return self._with_base(self._thinking.bias(len(generated) + len(drafts)))
            self._known = max(self._known, min(end, len(generated)))
            behind = drafts[max(0, end - len(generated)) :]
        else:
            behind = drafts
        if self._grammar is None:
            return self._base
        for token in generated[self._known :]:
            self._grammar.accept_token(token)
        self._known = len(generated)
        return self._with_base(self._masked(behind))

    def _masked(self, drafts: Sequence[int]) -> Tensor | None:
        """0 for tokens that may come behind drafts, -inf for others; None when anything may, the text being over."""
        taken = 0
        for token in drafts:
            if self._grammar.is_terminated() or not self._grammar.accept_token(token):
                break
            taken += 1
        found = None
        if not self._grammar.is_terminated():
            words = torch.empty(1, -(-self._vocab_size // 32), dtype=torch.int32)
            self._grammar.fill_next_token_bitmask(words)
            bits = (words[0, :, None] >> torch.arange(32, dtype=torch.int32)) & 1
            found = torch.where(bits.flatten()[: self._vocab_size] == 1, 0.0, -torch.inf)
        if taken:
            self._grammar.rollback(taken)
        return found

    def _with_base(self, bias: Tensor | None) -> Tensor | None:
        if bias is None or self._base is None:
            return self._base if bias is None else bias
        return bias + self._base


class ThinkingRule:
    """At most so many tokens of reasoning, then the tokens of `</think>`; the text does not end before.

    Args:
        end_ids: tokens of `</think>`.
        most: None for any number.
        closing: ids that end a text.
    """

    def __init__(self, end_ids: Sequence[int], most: int | None, closing: Collection[int], vocab_size: int) -> None:
        self._end_ids, self._most = tuple(end_ids), most
        self._open = torch.zeros(vocab_size)
        self._open[[i for i in closing if i < vocab_size]] = -torch.inf
        self._found: int | None = None
        self._searched = 0

    def end(self, generated: Sequence[int], drafts: Sequence[int]) -> int | None:
        """How many of the tokens stand before what follows the reasoning; None while that goes on."""
        if self._found is None:
            self._found = self._find(generated, self._searched)
            self._searched = max(0, len(generated) - len(self._end_ids) + 1)
        if self._found is not None or not drafts:
            return self._found
        found = self._find([*generated[self._searched :], *drafts], 0)
        return None if found is None else found + self._searched

    def _find(self, tokens: Sequence[int], start: int) -> int | None:
        size = len(self._end_ids)
        for at in range(start, len(tokens) - size + 1):
            if tuple(tokens[at : at + size]) == self._end_ids:
                return at + size
        return None

    def bias(self, written: int) -> Tensor:
        """For the token behind so many of the reasoning, float32 `[V]`."""
        if self._most is None or written < self._most:
            return self._open
        written -= self._most  # tokens of the end that is being forced
        forced = torch.full_like(self._open, -torch.inf)
        forced[self._end_ids[min(written, len(self._end_ids) - 1)]] = 0.0
        return forced


class Biases:
    """Makes the `TokenBias` of a request.

    Args:
        tokenizer: of the model; structures need one.
        vocab_size: of the logits.
        eos_ids: ids that end a text.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, eos_ids: Collection[int]) -> None:
        self._tokenizer, self._vocab_size, self._eos = tokenizer, vocab_size, frozenset(eos_ids)
        self._lock = threading.Lock()
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def of(self, params: SamplingParams) -> TokenBias | None:
        """For a request with these parameters; None where nothing is added.

        Raises:
            ValueError: a structure without a tokenizer or without the package that reads grammars, or a grammar that
                is not valid.
        """
        structure = params.structure
        if not params.logit_bias and structure is None:
            return None
        base = None
        if params.logit_bias:
            base = torch.zeros(self._vocab_size)
            ids, values = zip(*params.logit_bias, strict=True)
            base[list(ids)] = torch.tensor(values, dtype=torch.float32)
        thinking, grammar = None, None
        if structure is not None:
            if self._tokenizer is None:
                raise ValueError("a structure needs a tokenizer, and this model has none; leave it out")
            if structure.in_reasoning:
                end_ids = self._tokenizer.encode(END_THINK)
                thinking = ThinkingRule(end_ids, structure.reasoning_tokens, self._eos, self._vocab_size)
            if structure.grammar is not None:
                grammar = self._matcher(structure.grammar)
        return TokenBias(base, thinking, grammar, self._vocab_size)

    def _matcher(self, grammar: str) -> Any:
        xgrammar = _xgrammar()
        with self._lock:
            compiled = self._compiled(grammar)
        return xgrammar.GrammarMatcher(compiled, override_stop_tokens=sorted(self._eos))

    def _compile(self, grammar: str) -> Any:
        try:
            return self._compiler.compile_structural_tag({"type": "structural_tag", "format": json.loads(grammar)})
        except (ValueError, RuntimeError, TypeError) as error:
            raise ValueError(f"the structure asked for is not valid: {_first_line(error)}") from None

    @cached_property
    def _compiler(self) -> Any:
        """Knows what every token stands for; control tokens but the tags of calls stand for nothing."""
        xgrammar, tokenizer = _xgrammar(), self._tokenizer
        assert tokenizer is not None
        control = {i for name, i in tokenizer.special_tokens.items() if name not in TAGS}
        known = range(min(tokenizer.vocab_size, self._vocab_size))
        words = [b"" if i in control else tokenizer.token_bytes(i) for i in known]
        words += [b""] * (self._vocab_size - len(words))
        info = xgrammar.TokenizerInfo(
            words, xgrammar.VocabType.RAW, vocab_size=self._vocab_size, stop_token_ids=sorted(self._eos)
        )
        return xgrammar.GrammarCompiler(info, max_threads=1)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _xgrammar() -> Any:
    try:
        import xgrammar
    except ImportError:
        raise ValueError("structures need the package xgrammar; run: pip install 'indexshare[serve]'") from None
    return xgrammar
