"""`LLM`: a model with a cache, a tokenizer and a loop around it; prompts in, completions out."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from indexshare.cache.block_files import BlockFiles
from indexshare.cache.codecs import codec_name, codecs_by_stream
from indexshare.cache.paged import PagedCache
from indexshare.config.arguments import as_bytes, as_integer
from indexshare.config.shipped import model_directory
from indexshare.engine.admission import check_prompt
from indexshare.engine.core import Engine, Generation
from indexshare.engine.drafting import build
from indexshare.engine.drafting.build import DraftTokens
from indexshare.engine.identity import rows_identity
from indexshare.engine.loading import generation_defaults, load_with_tokenizer
from indexshare.engine.outputs import Chunk, CompletionOutput
from indexshare.engine.params import SamplingParams
from indexshare.engine.progress import GenerationProgress
from indexshare.engine.prompts import Prompt, as_batch, as_settings
from indexshare.engine.scheduler import PREFILL_CHUNK
from indexshare.engine.scoring import TextScore, score_windows
from indexshare.engine.storage import StorageSettings, build_cache
from indexshare.model.forward_pass import attention_limit
from indexshare.model.glm import GlmMoeDsa
from indexshare.step.native_step import MAX_ROWS
from indexshare.text.tokenizer import Tokenizer

BLOCK_SIZE = 64
CACHE_DIR_BYTES = 2 << 30
_AHEAD = 2  # requests in the engine for each that can run, so that none of its places stays empty
_Request = tuple[list[int], SamplingParams, str]
MAX_THREADS = 1024  # beyond any machine; compute libraries fail, or crash, somewhere above

_log = logging.getLogger(__name__)


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
        cache_memory: most bytes of the cache in memory, such as "2G"; it then holds as many tokens as fit.
        spill: folder for a file with what does not fit, index keys excepted; what a selection names is fetched, and
            nothing that is generated depends on it (`docs/memory.md`). Only with `cache_memory`.
        cache_dtype: how the cache keeps what is remembered of every token: "float32", "bfloat16", "fp8" or "int8"
            (`cache.codecs`); by default as it is computed. Values are rounded once, when they are written.
        index_cache_dtype: the same for the index keys alone; by default `cache_dtype`.
        prefill_chunk: most tokens computed in one step; bounds the memory of a long prompt.
        max_batch: most sequences generating at a time.
        full_attention_below: contexts up to this length are attended in full instead of sparsely.
        draft_tokens: tokens that are guessed and then verified in one step, 0 to 15, or "auto" for as many as pay by
            what is measured. The text is the same with `temperature=0`, and with drafts from lookups at any
            temperature; with a draft layer its law is the same.
        drafter: "lookup" guesses what followed the last tokens where they occurred before, "mtp" asks the model's draft
            layer, "both" a lookup where there is one and else the layer.
        prefix_cache: start prompts with the blocks of earlier ones that begin in the same way; nothing that is
            generated depends on it (`docs/prefixes.md`).
        cache_dir: folder in which the blocks of prompts outlive the process; several processes may use one.
        cache_dir_bytes: most that it holds; what was longest unused makes room.
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
        cache_memory: int | str | None = None,
        spill: str | Path | None = None,
        cache_dtype: torch.dtype | str | None = None,
        index_cache_dtype: torch.dtype | str | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
        max_batch: int = 64,
        full_attention_below: int = 0,
        draft_tokens: DraftTokens = 0,
        drafter: str = "lookup",
        prefix_cache: bool = True,
        cache_dir: str | Path | None = None,
        cache_dir_bytes: int = CACHE_DIR_BYTES,
        threads: int | None = None,
    ) -> None:
        max_context = _positive("max_context", max_context)
        cache_tokens = _positive("cache_tokens", cache_tokens)
        cache_memory = as_bytes("cache_memory", cache_memory)
        prefill_chunk = as_integer("prefill_chunk", prefill_chunk, low=1)
        max_batch = as_integer("max_batch", max_batch, low=1)
        cache_dtype = codec_name("cache_dtype", cache_dtype)
        index_cache_dtype = codec_name("index_cache_dtype", index_cache_dtype)
        full_attention_below = as_integer("full_attention_below", full_attention_below, low=0)
        draft_tokens = build.check(draft_tokens, drafter)
        cache_dir_bytes = as_integer("cache_dir_bytes", cache_dir_bytes, low=0)
        folder = _folder(cache_dir, prefix_cache)
        _set_threads(threads)
        self.model, self.tokenizer = load_with_tokenizer(model, tokenizer, dtype, device, weights)
        self.generation = generation_defaults(self.model)
        config, embedding = self.model.config, next(self.model.parameters())
        longest = config.max_position_embeddings
        self.max_context = longest if max_context is None else max_context
        if self.max_context > longest:
            raise ValueError(f"max_context is {max_context}, but the model was made for {longest} positions")
        drafter = build.fitting(draft_tokens, drafter, config)
        draft = build.uses_layer(draft_tokens, drafter)
        codecs = codecs_by_stream(config, cache_dtype, index_cache_dtype)
        storage = StorageSettings(
            tokens=cache_tokens, memory=cache_memory, folder=None if spill is None else Path(spill), codecs=codecs,
            draft=draft, chunk=prefill_chunk, rows=MAX_ROWS,
            limit=min(attention_limit(config, full_attention_below), self.max_context),
        )  # fmt: skip
        cache = build_cache(config, storage, self.max_context, BLOCK_SIZE, embedding.dtype, embedding.device)
        settings = {"prefill_chunk": prefill_chunk, "full_attention_below": full_attention_below}
        files = None if folder is None else self._block_files(folder, model, cache, cache_dir_bytes, settings)
        self.engine = Engine(
            self.model, cache, tokenizer=self.tokenizer, max_context=self.max_context, token_budget=prefill_chunk,
            max_running=max_batch, full_attention_below=full_attention_below, prefix_cache=prefix_cache, files=files,
            eos_ids=self.generation.eos_token_ids,
            drafting=build.build(draft_tokens, drafter, self.model, cache, full_attention_below=full_attention_below),
        )  # fmt: skip

    def _block_files(
        self, folder: Path, model: Any, cache: PagedCache, max_bytes: int, settings: dict[str, Any]
    ) -> BlockFiles:
        directory = model_directory(model) if isinstance(model, str | Path) else None
        name, about = rows_identity(self.model, cache, directory, settings)
        return BlockFiles(folder, name, about, max_bytes=max_bytes, explain=_log.warning)

    @property
    def cache(self) -> PagedCache:
        """The cache of past tokens."""
        return self.engine.cache

    @property
    def default_params(self) -> SamplingParams:
        """How tokens are chosen where nothing is asked: as the model's `generation_config.json` says, else sampled."""
        said = self.generation.sampling()
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
        requests = self._requests(prompts, params)
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

    def generate_each(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> Iterator[tuple[int, CompletionOutput]]:
        """Complete prompts, giving each output as soon as it is finished, with the number of its prompt.

        Arguments and errors as in `generate`; mistakes are reported at the call, before the first output. Closing the
        iterator or interrupting it frees the cache blocks.
        """
        return self._each(self._requests(prompts, params))

    def _each(self, requests: Sequence[_Request]) -> Iterator[tuple[int, CompletionOutput]]:
        waiting = deque(enumerate(requests))
        running: dict[Generation, int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < _AHEAD * self.engine.scheduler.max_running:
                    number, request = waiting.popleft()
                    running[self.engine.submit(*request)] = number
                self.engine.step()
                for generation in running:
                    generation.chunks.clear()  # the output holds everything
                for generation in [g for g in running if g.finished]:
                    _raise_error(generation)
                    assert generation.output is not None
                    yield running.pop(generation), generation.output
        finally:
            for generation in running:
                self.engine.abort(generation)

    def _requests(self, prompts: Any, params: Any) -> list[_Request]:
        """Ids, parameters and name of every prompt, all of them checked."""
        batch = as_batch(prompts)
        settings = [self.default_params] * len(batch) if params is None else as_settings(params, len(batch))
        requests = []
        for number, (prompt, chosen) in enumerate(zip(batch, settings, strict=True)):
            name = "prompt" if len(batch) == 1 else f"prompt {number}"
            ids = self._encode(prompt, name)
            chosen = self._clipped(chosen, ids) if params is None else chosen
            self.engine.check(ids, chosen, name)
            requests.append((ids, chosen, name))
        return requests

    def score(
        self,
        text: Prompt,
        *,
        after: Prompt | None = None,
        top: int = 0,
        window: int | None = None,
        stride: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> TextScore:
        """How likely the model finds a text, token by token, in its own distribution.

        A text that the context does not hold is scored in windows that overlap by half.

        Args:
            text: a text, in which names of special tokens are ordinary text, or token ids. Before it stands what the
                tokenizer's post-processor puts before every text.
            after: what stands before it and is not scored.
            top: most likely tokens to give for each place.
            window: most tokens read in one pass: `max_context`, or what the cache holds, unless given.
            stride: tokens by which the windows move on: half a window unless given.
            progress: called with (tokens read, tokens to read in all passes).

        Raises:
            ValueError: an empty text, one token with nothing before it, or a `window` or `stride` out of range.
        """
        before = [] if self.tokenizer is None else [*self.tokenizer.around[0]]
        before += [] if after is None else self._plain_ids(after, "after")
        own = self._plain_ids(text, "text")
        if len(before) + len(own) < 2:
            raise ValueError("the text is one token with nothing before it; give more text, or something before it")
        most = min(self.max_context, self.cache.num_tokens)
        window = as_integer("window", most if window is None else window, low=1, high=most)
        stride = as_integer("stride", max(1, window // 2) if stride is None else stride, low=1, high=window)
        found = score_windows(
            self.engine.score, [*before, *own], len(before), top=top, window=window, stride=stride, progress=progress
        )
        if self.tokenizer is None:
            return found
        known = (i for i in own[0 if before else 1 :] if i < self.tokenizer.vocab_size)
        return replace(found, num_bytes=sum(len(self.tokenizer.token_bytes(i)) for i in known))

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
        chosen = self._clipped(self.default_params, ids) if params is None else as_settings(params, 1)[0]
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

    def _plain_ids(self, text: Any, name: str) -> list[int]:
        """Ids of a text with nothing around it, in which names of special tokens are text; or checked ids."""
        if isinstance(text, str) and self.tokenizer is not None:
            text = self.tokenizer.encode(text, parse_special=False)
        return self._encode(text, name)

    def _encode(self, prompt: Any, name: str) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError(f"{name} is a text, but the model has no tokenizer; give token ids or a tokenizer")
            return check_prompt(self.tokenizer.encode_prompt(prompt), self.model.config.vocab_size, name)
        if isinstance(prompt, bytes) or not hasattr(prompt, "__iter__"):
            raise ValueError(f"{name} is {prompt!r}; expected a text or a list of token ids")
        return check_prompt(prompt, self.model.config.vocab_size, name)


def _folder(cache_dir: str | Path | None, prefix_cache: bool) -> Path | None:
    """The folder for blocks, which may not be there yet; ValueError when it cannot be one or would not be used."""
    if cache_dir is None:
        return None
    if not prefix_cache:
        raise ValueError(f"cache_dir is {str(cache_dir)!r}, but prefix_cache is False; leave one of them out")
    folder = Path(cache_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"cache_dir is {str(cache_dir)!r}, which is a file; expected a folder")
    return folder


def _positive(name: str, value: Any) -> int | None:
    return None if value is None else as_integer(name, value, low=1)


def _set_threads(threads: Any) -> None:
    if threads is None:
        return
    number = as_integer("threads", threads, low=1)
    if number > MAX_THREADS:
        raise ValueError(f"threads is {threads}; expected at most {MAX_THREADS}, best the number of cores")
    torch.set_num_threads(number)


def _raise_error(generation: Generation) -> None:
    if generation.error is not None:
        raise generation.error
