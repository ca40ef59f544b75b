"""Options that verbs have in common: which model, how it runs, how tokens are chosen."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from indexshare.cli.output import note
from indexshare.config.arguments import as_bytes
from indexshare.config.generation import GENERATION_FILE, GenerationDefaults

if TYPE_CHECKING:
    from indexshare.config.model import ModelConfig
    from indexshare.engine.llm import LLM
    from indexshare.engine.params import SamplingParams
    from indexshare.text.tokenizer import Tokenizer


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it runs.

    Parameters
    ----------
    model
        Name of a shipped model, or a model directory.
    dtype
        Type of the weights in memory: float32 or bfloat16. Unless given, float32 on a CPU, else as stored.
    weights
        int8 or int4: keep the matrices in so many bits, for less memory and faster writing on a CPU.
    device
        Where to run: cpu, cuda, cuda:1, ...
    full_attention_below
        Contexts up to this many tokens are attended in full instead of sparsely.
    cache_tokens
        Tokens that the cache holds over all prompts at a time. As many as half of the free memory has room for, or as
        are needed, unless given.
    cache_memory
        Most memory for the cache, such as 500M or 2G; it then holds as many tokens as that has room for.
    spill
        Folder for a file in which lies what does not fit into --cache-memory; it is fetched when it is needed. The text
        stays the same.
    cache_dtype
        How the cache keeps past tokens: float32, bfloat16, fp8 or int8; the last two take about half of bfloat16.
        As they are computed unless given.
    index_cache_dtype
        The same for the index keys alone.
    draft_tokens
        Guess so many tokens ahead (0 to 15) and verify them in one step, or auto for as many as pay. Faster where
        guesses are good; text at temperature 0 stays the same.
    drafter
        Who guesses: lookup (what followed the last words where they stood before), mtp (the draft layer) or both.
    cache_dir
        Folder in which the blocks of prompts are kept for the next run; several may use one.
    cache_dir_gib
        Most that the folder may hold, in GiB; what was longest unused makes room.
    threads
        CPU threads to use. All cores unless given.
    """

    model: Annotated[str, Parameter(name=["--model", "-m"])] = "nano"
    dtype: str | None = None
    weights: str | None = None
    device: str = "cpu"
    full_attention_below: int = 0
    cache_tokens: int | None = None
    cache_memory: str | None = None
    spill: Path | None = None
    cache_dtype: str | None = None
    index_cache_dtype: str | None = None
    draft_tokens: int | Literal["auto"] = 0
    drafter: Literal["lookup", "mtp", "both"] = "lookup"
    cache_dir: Path | None = None
    cache_dir_gib: float = 2.0
    threads: int | None = None

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; ValueError when the model is unknown or has none."""
        from indexshare.config.shipped import model_directory
        from indexshare.text.tokenizer import Tokenizer

        return Tokenizer.load(model_directory(self.model))

    def config(self) -> ModelConfig:
        """The model's configuration."""
        from indexshare.config.model import ModelConfig
        from indexshare.config.shipped import model_directory

        return ModelConfig.load(model_directory(self.model))

    def context(self) -> int:
        """Tokens that the model was made for."""
        return self.config().max_position_embeddings

    def generation(self) -> GenerationDefaults:
        """What the model's `generation_config.json` says."""
        from indexshare.config.shipped import model_directory

        return GenerationDefaults.load(model_directory(self.model))

    def load(self, tokenizer: Tokenizer, *, cache_tokens: int | None = None, cache_dir: Path | None = None) -> LLM:
        """The engine around the model.

        Room for `cache_tokens` tokens, or its own choice, and files in `cache_dir`, unless the user said otherwise.
        """
        from indexshare.engine.llm import LLM

        options = self.engine() | {"tokenizer": tokenizer}
        if self.cache_tokens is None:
            options["cache_tokens"] = cache_tokens
        if self.cache_dir is None:
            options["cache_dir"] = cache_dir
        return LLM(self.model, **options)

    def engine(self) -> dict[str, Any]:
        """Arguments of `LLM` but the model; ValueError for what can be told to be wrong without it."""
        if self.device != "cpu":  # torch need not be loaded to know that there is one
            check_device(self.device)
        if self.cache_dtype or self.index_cache_dtype:
            from indexshare.cache.codecs import codec_name

            codec_name("--cache-dtype", self.cache_dtype)
            codec_name("--index-cache-dtype", self.index_cache_dtype)
        if not 0 <= self.cache_dir_gib < 2**20:
            raise ValueError(f"--cache-dir-gib is {self.cache_dir_gib:g}; expected a number of GiB, 0 or more")
        names = (
            "dtype", "weights", "device", "cache_tokens", "cache_dtype", "index_cache_dtype", "full_attention_below",
            "draft_tokens", "drafter", "cache_dir", "spill", "threads",
        )  # fmt: skip
        sizes = {
            "cache_dir_bytes": int(self.cache_dir_gib * 2**30),
            "cache_memory": as_bytes("--cache-memory", self.cache_memory),
        }
        return {name: getattr(self, name) for name in names} | sizes


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """How a measured model keeps past tokens.

    Parameters
    ----------
    cache_dtype
        How the cache keeps past tokens: float32, bfloat16, fp8 or int8. As they are computed unless given.
    index_cache_dtype
        The same for the index keys alone.
    """

    cache_dtype: str | None = None
    index_cache_dtype: str | None = None

    @property
    def names(self) -> tuple[str | None, str | None]:
        """Of everything, and of the index keys."""
        return self.cache_dtype, self.index_cache_dtype


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are chosen.

    What is not given is as the model's generation_config.json says; without one, or where it is silent, the most likely
    token is taken each time.

    Parameters
    ----------
    max_tokens
        Most tokens to generate: 128 unless given, here or by the model.
    temperature
        0 takes the most likely token each time; 1 samples the model's own distribution.
    top_p
        Sample from the most likely tokens whose probabilities reach this sum.
    top_k
        Sample from this many most likely tokens; 0 means all.
    min_p
        Leave out tokens less likely than this fraction of the most likely one.
    repetition_penalty
        Above 1 makes tokens of the prompt and of the text so far less likely.
    presence_penalty
        Above 0 makes tokens of the text so far less likely, from -2 to 2.
    frequency_penalty
        The same for each time that the token was written.
    seed
        Makes sampling repeatable.
    stop
        Text that ends the completion; may be given several times.
    ignore_eos
        Go on where the model would end the text.
    logprobs
        Also give the log-probability of every token, and of so many most likely ones in its place.
    samples
        Write so many texts for each prompt, which takes a temperature above 0; the seeds count on from --seed.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    ignore_eos: Annotated[bool, Parameter(negative="")] = False
    logprobs: int | None = None
    samples: Annotated[int, Parameter(name=["--samples", "-n"])] = 1

    def params(self, defaults: GenerationDefaults, **own: Any) -> SamplingParams:
        """The engine's form of these options; ValueError when one is out of range.

        They go before what the model's file says; what a prompt has of its `own` goes before them.
        """
        from indexshare.engine.params import SamplingParams

        said = defaults.sampling()
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "samples"}
        given = {name: value for name, value in options.items() if value is not None and value is not False}
        given = {name: value for name, value in given.items() if value != ()}
        plain = {"temperature": 1.0 if defaults.samples else 0.0}
        return SamplingParams(**(plain | said | given | own))

    def each_sample(self, params: SamplingParams) -> list[SamplingParams]:
        """The parameters of every sample of a prompt: the seeds count on from the first one's.

        Raises:
            ValueError: several samples of a text that has no chance in it.
        """
        if self.samples < 1:
            raise ValueError(f"--samples (-n) is {self.samples}; expected 1 or more")
        if self.samples > 1 and params.greedy:
            raise ValueError(
                f"--samples (-n) {self.samples} would write the same text {self.samples} times; "
                "set --temperature above 0 (--max-tokens limits the length)"
            )
        if params.seed is None:
            return [params] * self.samples
        return [replace(params, seed=(params.seed + number) % 2**63) for number in range(self.samples)]

    def fitted(self, params: SamplingParams, room: int) -> SamplingParams:
        """`params` where there is room for so many tokens: no more than that, unless the user asked for more."""
        fewer = self.max_tokens is None and params.max_tokens > room >= 1
        return replace(params, max_tokens=room) if fewer else params

    def announce(self, params: SamplingParams, defaults: GenerationDefaults) -> None:
        """Say so, on standard error, when tokens are drawn because the model's file wants them drawn."""
        if defaults.samples and self.temperature is None and not params.greedy:
            given = {"temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k}
            shown = ", ".join(f"{name} {value:g}" for name, value in given.items() if value != 0)
            note(
                f"sampling as the model's {GENERATION_FILE} says: {shown}; --temperature 0 takes the most likely token"
            )


def check_device(name: str) -> None:
    """Refuse (ValueError) a device that torch does not know or that this machine does not have."""
    from indexshare.checkpoint.device import usable_device

    usable_device(name, "--device")
