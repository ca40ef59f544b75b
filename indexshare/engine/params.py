"""How tokens are chosen and when generation ends. Plain Python, no torch; what is wrong is refused at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from indexshare.config.arguments import as_integer, as_number
from indexshare.engine.structure import Structure

SEED_BITS = 63


_WHOLE_NUMBERS = (("max_tokens", 1, ""), ("top_k", 0, "; use 0 to keep all tokens"))
_NUMBERS: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
    ("temperature", "a number, 0 or more", lambda x: x >= 0),
    ("top_p", "a number above 0 and at most 1", lambda x: 0 < x <= 1),
    ("min_p", "a number from 0 to 1", lambda x: 0 <= x <= 1),
    ("repetition_penalty", "a number above 0", lambda x: x > 0),
    ("presence_penalty", "a number from -2 to 2", lambda x: -2 <= x <= 2),
    ("frequency_penalty", "a number from -2 to 2", lambda x: -2 <= x <= 2),
)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when generation ends.

    Penalties change the logits first; filters apply to the result in the order temperature, top_k, top_p, min_p
    (see `engine.sampler`).

    Args:
        max_tokens: most tokens to generate, at least 1.
        temperature: 0 takes the most likely token (the lowest id among equals); 1 is the model's own
            distribution.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens until their probabilities sum to at least this, in (0, 1].
        min_p: drop tokens less likely than this fraction of the most likely one, in [0, 1].
        repetition_penalty: logits of tokens that occur in the prompt or in what was generated are divided by this
            where they are positive and multiplied by it where they are negative (transformers' definition): above 1
            discourages repetition, 1 leaves everything as it is.
        presence_penalty: subtracted from the logits of tokens that were generated, in [-2, 2] (OpenAI's definition; the
            prompt does not count).
        frequency_penalty: subtracted once for each time that the token was generated, in [-2, 2].
        seed: makes the draws repeatable, whatever else runs in the batch; None draws a fresh one per request.
        stop: strings that end the text; they are not part of it.
        stop_token_ids: ids that end the text besides the model's own end-of-text ids.
        ignore_eos: go on past the model's end-of-text ids.
        logprobs: None for none; n for the log-probability of each chosen token and of the n most likely ones.
        logit_bias: added to the logits of these ids, a mapping or pairs, in [-100, 100] (OpenAI's definition).
        skip_special: leave special tokens out of the text. Those that end it never belong to it.
        structure: what the text must look like (`engine.structure`).

    Raises:
        ValueError: a value of the wrong type or out of range.
    """

    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    skip_special: bool = True
    structure: Structure | None = None

    def __post_init__(self) -> None:
        set_field = partial(object.__setattr__, self)
        for name, low, hint in _WHOLE_NUMBERS:
            set_field(name, as_integer(name, getattr(self, name), low=low, hint=hint))
        for name, expected, holds in _NUMBERS:
            set_field(name, as_number(name, getattr(self, name), expected, holds))
        if self.seed is not None:
            set_field("seed", as_integer("seed", self.seed, low=0, high=2**SEED_BITS - 1))
        if self.logprobs is not None:
            hint = "; use None for no log-probabilities"
            set_field("logprobs", as_integer("logprobs", self.logprobs, low=0, hint=hint))
        for name in ("ignore_eos", "skip_special"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected True or False")
        if self.structure is not None and not isinstance(self.structure, Structure):
            raise ValueError(f"structure is {self.structure!r}; expected a Structure or None")
        set_field("logit_bias", _biases(self.logit_bias))
        set_field("stop", _stop_strings(self.stop))
        ids = _as_tuple("stop_token_ids", self.stop_token_ids, "integers")
        set_field("stop_token_ids", tuple(as_integer("an id in stop_token_ids", token, low=0) for token in ids))

    @property
    def penalised(self) -> bool:
        """Whether tokens that occurred before are treated otherwise than the rest."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken without a draw."""
        return self.temperature == 0 or self.top_k == 1


def _stop_strings(value: Any) -> tuple[str, ...]:
    stop = (value,) if isinstance(value, str) else _as_tuple("stop", value, "strings")
    for text in stop:
        if not isinstance(text, str) or not text:
            raise ValueError(f"stop contains {text!r}; expected non-empty strings")
    return stop


def _biases(value: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of id and bias, by id."""
    pairs = value.items() if isinstance(value, Mapping) else _as_tuple("logit_bias", value, "pairs of id and bias")
    found = {}
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"logit_bias holds {pair!r}; expected ids with their biases, such as {{12: -100}}")
        token = as_integer("an id in logit_bias", pair[0], low=0)
        found[token] = as_number(
            f"logit_bias of {token}", pair[1], "a number from -100 to 100", lambda x: abs(x) <= 100
        )
    return tuple(sorted(found.items()))


def _as_tuple(name: str, value: Any, of: str) -> tuple[Any, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise ValueError(f"{name} is {value!r}; expected a list of {of}")
    return tuple(value)
