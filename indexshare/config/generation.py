"""`generation_config.json`: which ids end a text, and how the model's authors would have tokens chosen.

What is honoured is in `GenerationDefaults`; what is asked for and not implemented is named, so that nobody takes other
text for the model's. The whole file is kept when a model is saved again. Plain Python, no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GENERATION_FILE = "generation_config.json"
_MAX = 2**31 - 1

# Settings that change the text and are not implemented, with the values that ask for nothing.
_NOT_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,), "num_beam_groups": (1,), "penalty_alpha": (0,), "diversity_penalty": (0,), "typical_p": (1,),
    "epsilon_cutoff": (0,), "eta_cutoff": (0,), "top_h": (), "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,), "bad_words_ids": ([],), "sequence_bias": ({}, []), "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],), "forced_bos_token_id": (), "forced_eos_token_id": (), "min_length": (0,),
    "min_new_tokens": (0,), "exponential_decay_length_penalty": (), "guidance_scale": (1,),
    "watermarking_config": ({},), "num_return_sequences": (1,), "token_healing": (False,), "max_time": (),
}  # fmt: skip

_NO_MATTER = (
    "assistant_confidence_threshold", "assistant_lookbehind", "early_stopping", "encoder_no_repeat_ngram_size",
    "length_penalty", "max_length", "num_assistant_tokens", "num_assistant_tokens_schedule", "output_scores",
    "remove_invalid_values", "return_dict_in_generate", "target_lookbehind",
)  # fmt: skip
_HONOURED = (
    "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "stop_strings"
)  # fmt: skip
# Settings that stand in `config.json` in files from before there was one for them.
GENERATION_KEYS = frozenset({*_HONOURED, *_NO_MATTER, *_NOT_IMPLEMENTED})


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """What a `generation_config.json` says; None where it says nothing.

    Attributes:
        eos_token_ids: ids that end a text, instead of those in `config.json`.
        do_sample: whether tokens are drawn, or the most likely one is taken.
        temperature, top_k, top_p, min_p, repetition_penalty: how, as in `SamplingParams`.
        max_new_tokens: most tokens to generate.
        stop_strings: texts that end the text.
        not_implemented: settings that would change the text and are ignored, as `num_beams=4`.
    """

    eos_token_ids: tuple[int, ...] | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    stop_strings: tuple[str, ...] = ()
    not_implemented: tuple[str, ...] = ()

    @classmethod
    def load(cls, directory: str | Path) -> GenerationDefaults:
        """Those of a model directory: of its generation file, or without one of `config.json`, as in old models.

        Raises:
            ValueError: the file is damaged, or a value is of the wrong type or out of range.
        """
        for name in (GENERATION_FILE, "config.json"):
            file = Path(directory) / name
            if file.is_file():
                return cls.from_bytes(file.read_bytes(), name)
        return cls()

    @classmethod
    def from_bytes(cls, content: bytes, name: str = GENERATION_FILE) -> GenerationDefaults:
        """From the content of the file of that name."""
        try:
            data = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name} is not valid JSON: {error}") from None
        if not isinstance(data, dict):
            raise ValueError(f"{name} holds a {type(data).__name__}; expected a JSON object")
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GenerationDefaults:
        """From the keys of the file; a null is as good as no key."""
        top_k = _integer(data, "top_k", -1)  # some write -1 for all tokens
        return cls(
            eos_token_ids=_ids(data),
            do_sample=_flag(data, "do_sample"),
            temperature=_number(data, "temperature", "0 or more", lambda x: x >= 0),
            top_k=None if top_k is None else max(top_k, 0),
            top_p=_number(data, "top_p", "above 0 and at most 1", lambda x: 0 < x <= 1),
            min_p=_number(data, "min_p", "from 0 to 1", lambda x: 0 <= x <= 1),
            repetition_penalty=_number(data, "repetition_penalty", "above 0", lambda x: x > 0),
            max_new_tokens=_integer(data, "max_new_tokens", 1),
            stop_strings=_strings(data, "stop_strings"),
            not_implemented=tuple(
                f"{key}={_short(data[key])}"
                for key, neutral in _NOT_IMPLEMENTED.items()
                if data.get(key) is not None and not any(data[key] == value for value in neutral)
            ),
        )

    @property
    def samples(self) -> bool | None:
        """Whether tokens are to be drawn: as `do_sample` says, else as a temperature or a limit suggests."""
        if self.do_sample is not None:
            return self.do_sample
        given = (self.temperature, self.top_k, self.top_p, self.min_p)
        return None if all(value is None for value in given) else self.temperature != 0

    def sampling(self) -> dict[str, Any]:
        """Fields of `SamplingParams` that the file sets, by name."""
        choice: dict[str, Any] = {"temperature": 0.0}
        if self.samples is not False:
            choice = {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "min_p")}
        said = choice | {
            "repetition_penalty": self.repetition_penalty,
            "max_tokens": self.max_new_tokens,
            "stop": self.stop_strings or None,
        }
        return {name: value for name, value in said.items() if value is not None}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _refuse(key: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{key} is {_short(value)}; expected {expected}")


def _flag(data: Mapping[str, Any], key: str) -> bool | None:
    value = data.get(key)
    if value is not None and not isinstance(value, bool):
        raise _refuse(key, value, "true or false")
    return value


def _integer(data: Mapping[str, Any], key: str, least: int) -> int | None:
    value = data.get(key)
    if value is not None and (type(value) is not int or not least <= value <= _MAX):
        raise _refuse(key, value, f"a whole number from {least} to {_MAX}")
    return value


def _number(data: Mapping[str, Any], key: str, words: str, holds: Callable[[float], bool]) -> float | None:
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_MAX <= value <= _MAX or not holds(value):
        raise _refuse(key, value, f"a number {words}")
    assert math.isfinite(value)
    return float(value)


def _ids(data: Mapping[str, Any]) -> tuple[int, ...] | None:
    value = data.get("eos_token_id")
    if value is None:
        return None
    ids = value if isinstance(value, list) else [value]
    if not all(type(i) is int and 0 <= i <= _MAX for i in ids):
        raise _refuse("eos_token_id", value, "an id of 0 or more, or a list of them")
    return tuple(ids)


def _strings(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = data.get(key)
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise _refuse(key, value, "a text that is not empty, or a list of such")
    return tuple(texts)
