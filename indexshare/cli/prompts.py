"""Prompts from arguments, files and lines of JSON, with the parameters of each; all of them checked before any work."""

from __future__ import annotations

import difflib
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexshare.cli.options import ModelOptions, SamplingOptions
from indexshare.cli.output import note
from indexshare.config.generation import GenerationDefaults
from indexshare.config.model import ModelConfig
from indexshare.text.files import NotText, decode_text

if TYPE_CHECKING:
    from indexshare.engine.params import SamplingParams
    from indexshare.text.tokenizer import Tokenizer

_MOST_BYTES = 256_000_000  # a million tokens of text are about 4 MB
# Parameters that came later, with values that change nothing: results made before are still good.
_LATER: dict[str, Any] = {"logit_bias": (), "skip_special": True, "structure": None}
_KEYS = ("prompt", "ids", "id", "params")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One text to write.

    Attributes:
        number: of its prompt, from 0.
        sample: of its prompt, from 0.
        prompt: a text or token ids.
        params: how its tokens are chosen.
        said: what its result repeats of the prompt: the text or ids, and an `id` of the user's.
    """

    number: int
    sample: int
    prompt: str | list[int]
    params: SamplingParams
    said: dict[str, Any]

    def key(self, options: ModelOptions) -> str:
        """A hash of everything that decides its text: a result with it need not be made again."""
        how = [options.model, options.dtype, options.weights, options.device, options.full_attention_below]
        kept = [options.cache_dtype, options.index_cache_dtype]
        how += kept if any(kept) else []  # results made before there were these options are still good
        said = asdict(self.params)
        params = {name: said[name] for name in said if name not in _LATER or said[name] != _LATER[name]}
        text = json.dumps([how, self.prompt, params, self.sample], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_prompt(name: str) -> str:
    """Text of a prompt file, of a pipe, or of standard input for `-`; ValueError for what is not UTF-8."""
    try:
        return decode_text(read_input(name))
    except NotText as error:
        raise ValueError(f"the prompt file {name} is {error}; expected UTF-8 text") from None


def read_input(name: str) -> bytes:
    """All bytes of a file or a pipe, or of standard input for `-`; ValueError for more than any model could read."""
    if name == "-":
        if sys.stdin is None:
            raise ValueError("standard input is closed; give a file, or something to read with < or |")
        data = sys.stdin.buffer.read(_MOST_BYTES + 1)
    else:
        path = Path(name)
        if path.is_fifo() and not name.startswith("/dev/"):
            note(f"reading {name}, a pipe: waiting for what is written into it")
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"{name} holds more than {_MOST_BYTES:,} bytes, which no model here can read; give less")
    return data


@dataclass(frozen=True, kw_only=True)
class JobMaker:
    """What turns prompts into jobs: the model's tokenizer, configuration and defaults, and the command's options."""

    tokenizer: Tokenizer
    config: ModelConfig
    defaults: GenerationDefaults
    sampling: SamplingOptions

    @classmethod
    def of(cls, options: ModelOptions, sampling: SamplingOptions) -> JobMaker:
        """For a model; ValueError when it is unknown or has no tokenizer."""
        return cls(
            tokenizer=options.tokenizer(), config=options.config(), defaults=options.generation(), sampling=sampling
        )

    def from_texts(self, texts: Sequence[str]) -> list[Job]:
        """One job for every sample of every text."""
        longest = max(len(self.tokenizer.encode_prompt(text)) for text in texts)
        params = self.sampling.fitted(
            self.sampling.params(self.defaults), self.config.max_position_embeddings - longest
        )
        return [
            Job(number=number, sample=sample, prompt=text, params=each, said={"prompt": text})
            for number, text in enumerate(texts)
            for sample, each in enumerate(self.sampling.each_sample(params))
        ]

    def from_lines(self, name: str) -> list[Job]:
        """The jobs of a file with one JSON object per line; empty lines do not count.

        An object has `prompt` (a text) or `ids` (token ids), and may have `params` (fields of `SamplingParams`, which
        go before the command's options) and `id` (anything, repeated in the results).

        Raises:
            ValueError: no lines, or one that is no such object or can never be run; it is named by its number.
        """
        jobs = list[Job]()
        for place, line in enumerate(read_prompt(name).split("\n"), 1):
            if line.strip():
                try:
                    jobs += self._line_jobs(line, jobs[-1].number + 1 if jobs else 0)
                except ValueError as error:
                    raise ValueError(f"{name}, line {place}: {error}") from None
        if not jobs:
            example = '{"prompt": "def f("}'
            raise ValueError(f"{name} holds no prompt; expected one JSON object per line, such as {example}")
        return jobs

    def _line_jobs(self, line: str, number: int) -> Iterator[Job]:
        from indexshare.engine.admission import check_capacity, check_prompt
        from indexshare.engine.params import SamplingParams

        entry = _parse(line)
        own = entry.get("params") or {}
        _check_names(own, [field.name for field in fields(SamplingParams)], "params")
        prompt = entry["prompt"] if "prompt" in entry else entry["ids"]
        ids = self.tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else prompt
        context, params = self.config.max_position_embeddings, self.sampling.params(self.defaults, **own)
        if "max_tokens" not in own:
            params = self.sampling.fitted(params, context - len(ids))
        check_prompt(ids, self.config.vocab_size)
        check_capacity(len(ids), params.max_tokens, max_context=context, cache_tokens=context)
        said: dict[str, Any] = {str(name): entry[name] for name in ("id", "prompt", "ids") if name in entry}
        for sample, each in enumerate(self.sampling.each_sample(params)):
            yield Job(number=number, sample=sample, prompt=prompt, params=each, said=said)


def _parse(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from None
    if not isinstance(entry, dict):
        raise ValueError(f"holds a {type(entry).__name__}; expected an object with a prompt")
    _check_names(entry, _KEYS, "the object")
    if ("prompt" in entry) == ("ids" in entry):
        raise ValueError('expected either "prompt", a text, or "ids", token ids')
    if "prompt" in entry and not isinstance(entry["prompt"], str):
        raise ValueError(f"prompt is {_short(entry['prompt'])}; expected a text (token ids are called ids)")
    if "ids" in entry and not isinstance(entry["ids"], list):
        raise ValueError(f"ids is {_short(entry['ids'])}; expected a list of token ids")
    if not isinstance(entry.get("params") or {}, dict):
        raise ValueError(f"params is {_short(entry['params'])}; expected an object")
    return entry


def _check_names(entry: dict[str, Any], known: Sequence[str], where: str) -> None:
    for name in entry:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"{where} has a key {name!r}; {hint}")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
