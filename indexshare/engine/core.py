"""The loop under everything: schedule, compute, draw, hand out text. `LLM` and servers call its steps."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

from indexshare.cache.block_files import BlockFiles
from indexshare.cache.blocks import BlockAllocator
from indexshare.cache.paged import PagedCache
from indexshare.cache.prefix import PrefixCache
from indexshare.cache.spill import SpillCounts
from indexshare.engine.admission import check_capacity
from indexshare.engine.biases import Biases, TokenBias
from indexshare.engine.drafting.base import Wish
from indexshare.engine.drafting.drawing import NO_DRAFTS, Case, Drawn, draw_cases
from indexshare.engine.drafting.layer import MOST_WAITING
from indexshare.engine.drafting.rounds import Drafting, may_draft
from indexshare.engine.identity import rows_mark
from indexshare.engine.outputs import Chunk, CompletionOutput, TokenLogprobs
from indexshare.engine.params import SamplingParams
from indexshare.engine.penalties import SeenTokens
from indexshare.engine.request import Request, RequestState
from indexshare.engine.row_products import fewest_rows
from indexshare.engine.runner import Model, Runner
from indexshare.engine.sampler import Draw
from indexshare.engine.saved_prefixes import SavedPrefixes
from indexshare.engine.scheduler import PREFILL_CHUNK, Row, Scheduler
from indexshare.engine.scoring import Scorer
from indexshare.engine.text import TextAssembler
from indexshare.model.attention.grouped import TILE
from indexshare.model.forward_pass import attention_limit
from indexshare.model.glm import GlmMoeDsa
from indexshare.step.native_step import MAX_ROWS
from indexshare.text.files import plural
from indexshare.text.tokenizer import Tokenizer


class Generation:
    """One request in the engine, with its chunks not yet taken. Made by `Engine.submit`."""

    def __init__(self, request: Request, text: TextAssembler, name: str, bias: TokenBias | None = None) -> None:
        self.request = request
        self._bias = bias
        self.name = name
        self.chunks: deque[Chunk] = deque()
        self.output: CompletionOutput | None = None
        self.error: Exception | None = None
        self.proposal = NO_DRAFTS
        self._text = text
        params = request.params
        self._seen = SeenTokens(params, request.prompt_len) if params.penalised else None

    @property
    def finished(self) -> bool:
        """Whether there is an output or an error."""
        return self.request.finished

    @property
    def prefilled(self) -> int:
        """Prompt tokens computed so far; all of them once a token was generated, even if preempted since."""
        request = self.request
        return request.prompt_len if request.num_outputs else min(request.computed, request.prompt_len)

    def draw_after(self, tokens: Sequence[int] = ()) -> Draw:
        """How the token is to be chosen that comes next, or behind some more tokens."""
        request, seen = self.request, self._seen
        if seen is not None:
            seen.update(request.tokens)
            if tokens:
                seen = seen.copy()
                seen.update([*request.tokens, *tokens])
        bias = None if self._bias is None else self._bias.after(request.output_ids, tokens)
        return Draw(request.params, request.seed, len(request.tokens) + len(tokens), seen, bias)

    def case(self, *, drafted: bool) -> Case:
        """What is to be drawn once its row of a step is computed, behind its drafts if they are `drafted` there."""
        return Case(self.proposal if drafted else NO_DRAFTS, self.draw_after, self.request.params.logprobs)

    def take(self, token: int, logprobs: TokenLogprobs | None, now: float, *, drafted: bool = False) -> str | None:
        """Add a drawn token and queue its chunk; returns the reason to finish, or None."""
        request = self.request
        request.append(token, now)
        if logprobs is not None:
            request.logprobs.append(logprobs)
        text = self._text.push(token, last=request.finish_reason is not None)
        if self._text.stopped:
            request.finish_reason = "stop"
        if request.finish_reason is None:
            self.chunks.append(Chunk(text=text, token_id=token, logprobs=logprobs, drafted=drafted))
        else:
            self._close(request.finish_reason, text, token, logprobs, drafted=drafted)
        return request.finish_reason

    def abort(self) -> None:
        """Close with what there is."""
        self._close("abort", self._text.finish(), None, None)

    def _close(
        self, reason: str, text: str, token: int | None, logprobs: TokenLogprobs | None, *, drafted: bool = False
    ) -> None:
        request = self.request
        self.output = CompletionOutput(
            text=self._text.text,
            token_ids=request.output_ids,
            logprobs=None if request.params.logprobs is None else request.logprobs,
            finish_reason=reason,
            stats=request.stats,
        )
        self.chunks.append(Chunk(text=text, token_id=token, logprobs=logprobs, drafted=drafted, output=self.output))


class Engine:
    """Requests in, chunks out. Every call is safe from any thread; steps run one at a time.

    Args:
        model: what computes hidden rows and logits.
        cache: where the keys of past tokens live; the engine owns all of its blocks.
        tokenizer: makes text; None for token ids only.
        max_context: most positions of one sequence.
        token_budget: most tokens computed in one step, which bounds the memory of a step.
        max_running: most sequences in the cache at a time.
        full_attention_below: contexts up to this length are attended in full.
        prefix_cache: start prompts with the blocks of earlier ones that begin in the same way.
        files: where those of earlier processes are, and where this one's are kept; only with `prefix_cache`.
        eos_ids: ids that end a text, the tokenizer's besides; those of the model's configuration unless given.
        drafting: who drafts tokens that steps then verify, and how many; None for nobody.
    """

    def __init__(
        self,
        model: Model,
        cache: PagedCache,
        *,
        tokenizer: Tokenizer | None = None,
        max_context: int | None = None,
        token_budget: int = PREFILL_CHUNK,
        max_running: int = 64,
        full_attention_below: int = 0,
        prefix_cache: bool = False,
        files: BlockFiles | None = None,
        eos_ids: Collection[int] | None = None,
        drafting: Drafting | None = None,
    ) -> None:
        self.cache = cache
        self.tokenizer = tokenizer
        self.max_context = model.config.max_position_embeddings if max_context is None else max_context
        self.allocator = BlockAllocator(cache.num_blocks, cache.block_size)
        self._lock = threading.RLock()
        self.prefixes: PrefixCache | None = None
        self.saved: SavedPrefixes | None = None
        least = _least_piece(model)
        if prefix_cache:
            selects = model.config.selects
            first = attention_limit(model.config, full_attention_below) if selects else cache.block_size
            step = None if selects else math.lcm(cache.block_size, TILE)
            step = step if least is not None else math.lcm(cache.block_size, token_budget)
            drafts = cache.has_draft_layer
            self.prefixes = PrefixCache(
                self.allocator, first=first, step=step, left=least or 1, ahead=int(drafts), late=MOST_WAITING * drafts
            )
            if files is not None:
                self.saved = SavedPrefixes(files, cache, self.prefixes, self._lock)
        self._model, self._mark = model, rows_mark(model)
        self.scheduler = Scheduler(
            self.allocator, token_budget=token_budget, max_running=max_running, least_piece=least or 1,
            prefixes=self.prefixes, restore=self._restore,
        )  # fmt: skip
        self.runner = Runner(model, cache, full_attention_below=full_attention_below)
        self._drafting = drafting
        self._scorer = Scorer(
            model, cache, self.allocator, chunk=token_budget, full_attention_below=full_attention_below
        )
        eos = set(model.config.eos_token_ids if eos_ids is None else eos_ids)
        if tokenizer is not None:
            eos.update(tokenizer.eos_ids)
        self._eos = frozenset(eos)
        self._vocab_size = model.config.vocab_size
        self._biases = Biases(tokenizer, self._vocab_size, self._eos)
        self._generations: dict[Request, Generation] = {}

    @property
    def has_work(self) -> bool:
        """Whether a step would compute something."""
        return bool(self._generations)

    def check(self, prompt_ids: Sequence[int], params: SamplingParams, name: str = "prompt") -> None:
        """Refuse a request that can never run: ValueError with the sizes and the fix. Takes checked ids."""
        if params.logprobs is not None and params.logprobs > self._vocab_size:
            raise ValueError(f"logprobs is {params.logprobs}; the vocabulary has only {self._vocab_size} tokens")
        if params.logit_bias and params.logit_bias[-1][0] >= self._vocab_size:
            raise ValueError(
                f"logit_bias names the id {params.logit_bias[-1][0]}; the vocabulary has only {self._vocab_size} tokens"
            )
        if params.stop and self.tokenizer is None:
            raise ValueError("stop strings need a tokenizer, and this model has none; use stop_token_ids")
        check_capacity(
            len(prompt_ids),
            params.max_tokens,
            max_context=self.max_context,
            cache_tokens=self.cache.num_tokens,
            name=name,
        )

    def prepare(self, params: SamplingParams) -> None:
        """Do ahead of `submit` what may take long: read a grammar. Errors as there; safe while steps run."""
        self._biases.of(params)

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams, name: str = "prompt") -> Generation:
        """Queue a request; it runs as `step` is called.

        Args:
            prompt_ids: from `check_prompt`.
            params: how to choose tokens and when to end.
            name: what to call the request in error messages.

        Raises:
            ValueError: see `check`.
        """
        self.check(prompt_ids, params, name)
        bias = self._biases.of(params)
        request = Request(prompt_ids, params, eos_ids=self._eos)
        silent = {*params.stop_token_ids, *(() if params.ignore_eos else self._eos)}
        text = TextAssembler(self.tokenizer, params.stop, silent, skip_special=params.skip_special)
        generation = Generation(request, text, name, bias)
        with self._lock:
            self._forget_outdated()
            self.scheduler.add(request)
            self._generations[request] = generation
        return generation

    def _forget_outdated(self) -> None:
        """Known prefixes are of no use once the weights, or how they are multiplied, have changed."""
        if self.prefixes is not None and (mark := rows_mark(self._model)) != self._mark:
            self._mark = mark
            self.prefixes.clear()
            self.saved = None  # the files are those of other weights

    def _restore(self, request: Request, known: int) -> int:
        return known if self.saved is None else self.saved.restore(request, known)

    def _end(self, request: Request, reason: str) -> None:
        if self.saved is not None:
            self.saved.remember(request)
        self.scheduler.finish(request, reason)

    def score(
        self, ids: Sequence[int], first: int, *, top: int = 0, progress: Callable[[int], None] | None = None
    ) -> list[TokenLogprobs]:
        """Log-probabilities of `ids[first:]` between two steps of the others; arguments and errors as in `Scorer`."""
        with self._lock:
            return self._scorer.score(ids, first, top=top, progress=progress)

    def abort(self, generation: Generation) -> None:
        """End a request now and free its blocks; nothing happens if it has ended already."""
        with self._lock:
            if self._generations.pop(generation.request, None) is not None:
                self._end(generation.request, "abort")
                generation.abort()

    def step(self) -> None:
        """Compute one batch; chunks appear in the generations concerned.

        A failure while computing (or Ctrl+C) leaves every request where it was before the step. Ctrl+C in the
        instant in which tokens are handed out may cut a chunk off: abort the requests then, as `LLM` does.
        """
        with self._lock:
            before = self.cache.count()
            self._propose()
            rows = self.scheduler.schedule()
            if not rows:
                return
            self._stamp_start(rows)
            began = time.perf_counter()
            computed = self.runner.forward(rows)
            took = time.perf_counter() - began
            ending = [row for row in rows if row.completes]
            drawn = draw_cases(computed.logits, [self._case(row) for row in ending])
            self._end_lost()
            self.scheduler.commit([row for row in rows if not row.request.finished])
            for row in rows:
                self.runner.count(row.request.stats, row.past, row.length)
            now = time.perf_counter()
            for row, found in zip(ending, drawn, strict=True):
                if not row.request.finished:
                    self._hand_out(row, found, now, took)
            if self._drafting is not None:
                self._drafting.computed(rows, computed.hidden, took)
            self._end_lost()
            _count_spilled(rows, before, self.cache.count())

    def _end_lost(self) -> None:
        """End the requests of which the cache has lost rows, and those alone."""
        lost = self.cache.flush()
        if self.prefixes is not None:
            for block in lost:
                self.prefixes.forget(block)
        for request, generation in list(self._generations.items()) if lost else ():
            reason = next((lost[block] for block in request.table if block in lost), None)
            if reason is not None:
                del self._generations[request]
                generation.error = OSError(f"{generation.name}: {reason}")
                self._end(request, "abort")
                generation.abort()

    def _propose(self) -> None:
        """Ask for drafts of all sequences that are being written."""
        if self._drafting is None:
            return
        writing = [g for g in self._generations.values() if g.request.state is RequestState.DECODE]
        wishes = [Wish(g.request, may_draft(g.request), g.draw_after) for g in writing]
        for generation, proposal in zip(writing, self._drafting.propose(wishes), strict=True):
            generation.proposal = proposal

    def _case(self, row: Row) -> Case:
        return self._generations[row.request].case(drafted=bool(row.drafts))

    def _stamp_start(self, rows: Sequence[Row]) -> None:
        now = None
        for row in rows:
            request = row.request
            if request.started_at is None:
                now = time.perf_counter() if now is None else now
                request.started_at = now
                request.stats.queue_s = now - request.arrived_at

    def _hand_out(self, row: Row, drawn: Drawn, now: float, took: float) -> None:
        """Take the tokens that were drawn, up to the one that ends the request."""
        request = row.request
        generation = self._generations[request]
        reason, accepted = None, 0
        for place, (token, logprobs) in enumerate(zip(drawn.tokens, drawn.logprobs, strict=True)):
            drafted = place < len(row.drafts) and token == row.drafts[place]
            if drafted:  # its keys are in the cache; counted first: an interruption computes it again
                request.computed += 1
                accepted += 1
            reason = generation.take(token, logprobs, now, drafted=drafted)
            if reason is not None:
                break
        if row.drafts and self._drafting is not None:
            self._drafting.verified(request, generation.proposal, accepted, took)
        if reason is None and drawn.broken:
            generation.error = ValueError(
                f"{generation.name}: the logits after {plural(len(request.tokens), 'token')} are NaN or infinite; "
                "check the weights for NaN, or load the model in a wider dtype such as float32"
            )
            reason = "abort"
            generation.abort()
        if reason is not None:
            self._end(request, reason)
            del self._generations[request]


def _count_spilled(rows: Sequence[Row], before: SpillCounts | None, after: SpillCounts | None) -> None:
    if before is None or after is None:
        return
    added = after.since(before)
    for row in rows:
        stats = row.request.stats
        stats.spill_rows += added.rows
        stats.spill_found += added.found
        stats.spill_bytes_read += added.bytes_read
        stats.spill_wait_s += added.wait_s


def _least_piece(model: Model) -> int | None:
    """From how many rows on a prompt's piece is computed to the same bits however the prompt is cut, None if never.

    Where rows of a product depend on their number, a prompt may be cut only where a cold run cuts it.
    """
    if not isinstance(model, GlmMoeDsa):
        return 1
    least = fewest_rows(model.embed_tokens.weight)
    return None if least is None else max(least, MAX_ROWS + 1)  # up to MAX_ROWS the native step computes
