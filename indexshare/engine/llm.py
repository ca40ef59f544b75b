"""`LLM`: a model with a cache, a tokenizer and a loop around it; prompts in, completions out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from indexshare.adapt.quantized import packing
from indexshare.cache.paged import PagedCache
from indexshare.checkpoint.load import load_model
from indexshare.config.generation import GENERATION_FILE, GenerationDefaults
from indexshare.config.shipped import model_directory
from indexshare.engine.capacity import default_cache_tokens
from indexshare.engine.core import Engine, Generation
from indexshare.engine.progress import GenerationProgress
from indexshare.engine.request import Chunk, CompletionOutput, SamplingParams, check_prompt
from indexshare.engine.scheduler import PREFILL_CHUNK
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import Tokenizer

BLOCK_SIZE = 64
Prompt = str | Sequence[int]
_PARAMETERS = {field.name for field in fields(SamplingParams)}


MAX_THREADS = 1024  # beyond any machine; compute libraries fail, or crash, somewhere above


class LLM:
    """Generates text with a model.

    Args:
        model: name of a shipped model, a Hugging Face directory, or a model already in memory.
        tokenizer: its tokenizer, or the directory of one; by default the one in the model's directory if it
            has any. Without a tokenizer, prompts are token ids and texts are empty.
        dtype: type to load the weights in (a torch dtype or its name); by default float32 on a CPU, where text then
            does not depend on chunks and batches, and as stored elsewhere. Not with a model in memory.
        device: where to load them. Not with a model in memory.
        weights: "int8" or "int4" to keep the matrices in so many bits per weight, with a scale per 32 of them: less
            memory and faster decoding on a CPU, at some loss of quality. Not with a model in memory.
        max_context: most positions of one sequence; by default all that the model was made for.
        cache_tokens: tokens that the cache holds over all sequences; by default four full contexts within
            half of the free memory. Rounded up to whole blocks.
        prefill_chunk: most tokens computed in one step; bounds the memory of a long prompt.
        max_batch: most sequences generating at a time.
        full_attention_below: contexts up to this length are attended in full instead of sparsely.
        threads: CPU threads for torch, for the whole process; None leaves them.

    Raises:
        ValueError: an unknown model, or a setting out of range.
    """

    def __init__(
        self,
        model: str | Path | GlmMoeDsa,
        *,
        tokenizer: Tokenizer | str | Path | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        weights: str | None = None,
        max_context: int | None = None,
        cache_tokens: int | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
        max_batch: int = 64,
        full_attention_below: int = 0,
        threads: int | None = None,
    ) -> None:
        _check_settings(
            max_context=max_context,
            cache_tokens=cache_tokens,
            prefill_chunk=prefill_chunk,
            max_batch=max_batch,
        )
        below = full_attention_below
        if isinstance(below, bool) or not isinstance(below, int) or below < 0:
            raise ValueError(f"full_attention_below is {below!r}; expected an integer, 0 or more")
        if threads is not None:
            _check_settings(threads=threads)
            if threads > MAX_THREADS:
                raise ValueError(f"threads is {threads}; expected at most {MAX_THREADS}, best the number of cores")
            torch.set_num_threads(threads)
        self.model, self.tokenizer = _load(model, tokenizer, dtype, device, weights)
        self.generation = _generation(self.model)
        config, embedding = self.model.config, next(self.model.parameters())
        longest = config.max_position_embeddings
        self.max_context = longest if max_context is None else max_context
        if self.max_context > longest:
            raise ValueError(f"max_context is {max_context}, but the model was made for {longest} positions")
        if cache_tokens is None:
            cache_tokens = default_cache_tokens(
                config,
                self.max_context,
                block_size=BLOCK_SIZE,
                element_bytes=embedding.element_size(),
                device=embedding.device,
            )
        cache = PagedCache(config, -(-cache_tokens // BLOCK_SIZE), BLOCK_SIZE, embedding.dtype, embedding.device)
        self.engine = Engine(
            self.model,
            cache,
            tokenizer=self.tokenizer,
            max_context=self.max_context,
            token_budget=prefill_chunk,
            max_running=max_batch,
            full_attention_below=full_attention_below,
            eos_ids=self.generation.eos_token_ids,
        )

    @property
    def cache(self) -> PagedCache:
        """The cache of past tokens."""
        return self.engine.cache

    @property
    def default_params(self) -> SamplingParams:
        """How tokens are chosen where nothing is asked: as the model's `generation_config.json` says, else sampled."""
        said = {name: value for name, value in self.generation.sampling().items() if name in _PARAMETERS}
        if self.tokenizer is None:
            said.pop("stop", None)
        return SamplingParams(**said)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        on_prefill: Callable[[int, int], None] | None = None,
    ) -> list[CompletionOutput]:
        """Complete prompts, as many at a time as fit.

        Args:
            prompts: a text, token ids, or a list of either. Texts get what the tokenizer's
                post-processor adds to every text, such as a first token; token ids are taken as they are.
            params: for all prompts, or one for each; if None, `default_params`, in the room there is.
            progress: show a bar with rate and time left on standard error.
            on_prefill: called with (tokens done, tokens in all) as the prompts are read.

        Returns:
            One output per prompt, in order.

        Raises:
            ValueError: a prompt or setting is wrong, or a request can never fit; nothing has run then. Also
                when the model gives NaN.
        """
        batch = _as_batch(prompts)
        settings = [self.default_params] * len(batch) if params is None else _as_settings(params, len(batch))
        requests = []
        for number, (prompt, chosen) in enumerate(zip(batch, settings, strict=True)):
            name = "prompt" if len(batch) == 1 else f"prompt {number}"
            ids = self._encode(prompt, name)
            chosen = self._clipped(chosen, ids) if params is None else chosen
            self.engine.check(ids, chosen, name)
            requests.append((ids, chosen, name))
        generations: list[Generation] = []
        try:
            for request in requests:
                generations.append(self.engine.submit(*request))
            with GenerationProgress(generations, show=progress, on_prefill=on_prefill) as report:
                self._drive(generations, report)
        finally:
            for generation in generations:
                self.engine.abort(generation)
        return [g.output for g in generations if g.output is not None]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        on_prefill: Callable[[int, int], None] | None = None,
    ) -> Iterator[Chunk]:
        """Complete one prompt, giving each piece of text as soon as it is certain.

        The pieces join to the text that `generate` returns; the last chunk carries the output. Closing the
        iterator or interrupting it frees the cache blocks. Mistakes are reported at the call, before the
        first chunk.

        Args:
            prompt: a text or token ids.
            params: if None, `default_params`, in the room there is.
            on_prefill: called with (tokens done, tokens in all) as the prompt is read.

        Raises:
            ValueError: as in `generate`.
        """
        ids = self._encode(prompt, "prompt")
        chosen = self._clipped(self.default_params, ids) if params is None else _as_settings(params, 1)[0]
        self.engine.check(ids, chosen)
        return self._stream(ids, chosen, on_prefill)

    def _stream(
        self, ids: list[int], params: SamplingParams, on_prefill: Callable[[int, int], None] | None
    ) -> Iterator[Chunk]:
        # Submitted only when the first chunk is asked for: an iterator that never starts is never closed
        # either.
        generation = self.engine.submit(ids, params)
        try:
            with GenerationProgress([generation], on_prefill=on_prefill) as report:
                while True:
                    while generation.chunks:
                        yield generation.chunks.popleft()
                    if generation.finished:
                        return
                    self.engine.step()
                    _raise_error(generation)
                    report.update()
        finally:
            self.engine.abort(generation)

    def _drive(self, generations: Sequence[Generation], report: GenerationProgress) -> None:
        """Step until these are finished; others in the engine move along."""
        left = list(generations)
        while left:
            self.engine.step()
            report.update()
            for generation in left:
                _raise_error(generation)
                generation.chunks.clear()  # the output holds everything
            left = [g for g in left if not g.finished]

    def _clipped(self, params: SamplingParams, ids: list[int]) -> SamplingParams:
        """`params` with a `max_tokens` that nobody asked for cut to the room there is."""
        room = min(self.max_context, self.cache.num_tokens + 1) - len(ids)
        return replace(params, max_tokens=max(1, min(params.max_tokens, room)))

    def _encode(self, prompt: Any, name: str) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError(f"{name} is a text, but the model has no tokenizer; give token ids or a tokenizer")
            return check_prompt(self.tokenizer.encode_prompt(prompt), self.model.config.vocab_size, name)
        if isinstance(prompt, bytes) or not hasattr(prompt, "__iter__"):
            raise ValueError(f"{name} is {prompt!r}; expected a text or a list of token ids")
        return check_prompt(prompt, self.model.config.vocab_size, name)


def _generation(model: GlmMoeDsa) -> GenerationDefaults:
    """What the generation file that came with the model says; a warning names what is not implemented."""
    found = GenerationDefaults.from_bytes(getattr(model, "companions", {}).get(GENERATION_FILE))
    missing = [f"{name}={value}" for name, value in found.sampling().items() if name not in _PARAMETERS]
    ignored = [*found.not_implemented, *(text for text in missing if text != "repetition_penalty=1.0")]
    if ignored:
        warnings.warn(
            f"the model's {GENERATION_FILE} asks for {', '.join(ignored)}; not implemented, ignored", stacklevel=3
        )
    return found


def _raise_error(generation: Generation) -> None:
    if generation.error is not None:
        raise generation.error


def _check_settings(**settings: Any) -> None:
    for name, value in settings.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} is {value!r}; expected an integer, 1 or more")


def running_dtype(dtype: torch.dtype | str | None, device: torch.device | str) -> torch.dtype | str | None:
    """The type to run in when none is asked for: float32 on a CPU, as stored (None) elsewhere.

    In bfloat16 the last bits of a product depend on how many rows it has, and greedy text on them (`docs/LOG.md`).
    """
    return torch.float32 if dtype is None and torch.device(device).type == "cpu" else dtype


def _load(
    model: str | Path | GlmMoeDsa,
    tokenizer: Tokenizer | str | Path | None,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    weights: str | None,
) -> tuple[GlmMoeDsa, Tokenizer | None]:
    """The model in evaluation mode and its tokenizer."""
    if isinstance(model, str | Path):
        directory = model_directory(model)
        device = "cpu" if device is None else device
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is {str(device)!r}, but this torch finds no CUDA device; use device='cpu'")
        kind = running_dtype(dtype, device)
        loaded = load_model(directory, dtype=kind, device=device, adapt=packing(weights))
        if tokenizer is None and (directory / "tokenizer.json").is_file():
            tokenizer = directory
    elif not isinstance(model, torch.nn.Module):
        raise ValueError(f"model is {model!r}; expected a shipped model's name, a directory, or a model")
    else:
        loaded = model
        if dtype is not None or device is not None:
            raise ValueError("dtype and device apply to a model that is loaded; convert this one with model.to(...)")
        if weights is not None:
            raise ValueError("weights applies to a model that is loaded; call quantize_weights on this one")
    if isinstance(tokenizer, str | Path):
        tokenizer = Tokenizer.load(tokenizer)
    if tokenizer is not None and tokenizer.vocab_size > loaded.config.vocab_size:
        raise ValueError(
            f"the tokenizer has ids for {tokenizer.vocab_size} entries, more than the model's vocabulary of "
            f"{loaded.config.vocab_size}; it belongs to another model"
        )
    return loaded.eval(), tokenizer


def _as_batch(prompts: Any) -> list[Any]:
    """A list of prompts: a text or a flat list of ids counts as one. ValueError when there is nothing."""
    if isinstance(prompts, dict | set):
        raise ValueError(f"prompts is a {type(prompts).__name__}; expected a text, token ids, or a list of either")
    if isinstance(prompts, str | bytes) or not hasattr(prompts, "__iter__"):
        return [prompts]
    items = list(prompts)
    if not items:
        raise ValueError("prompts is empty; expected a text, token ids, or a list of either")
    return items if any(map(_is_prompt, items)) else [items]


def _is_prompt(item: Any) -> bool:
    """Whether an element of a list is itself a prompt, not one id; a tensor without dimensions is an id."""
    return hasattr(item, "__len__") and getattr(item, "ndim", 1) > 0


def _as_settings(params: Any, count: int) -> list[SamplingParams]:
    settings = [params] * count if not isinstance(params, list | tuple) else list(params)
    if len(settings) != count:
        raise ValueError(f"{len(settings)} sampling parameters for {count} prompts; expected one, or one for each")
    for value in settings:
        if not isinstance(value, SamplingParams):
            raise ValueError(f"params is {value!r}; expected SamplingParams")
    return settings
