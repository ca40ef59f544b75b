"""Rollouts on the engine: many episodes at a time, each at its own turn, carried over updates of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from indexshare.engine.core import Generation
from indexshare.engine.llm import LLM
from indexshare.engine.params import SEED_BITS, SamplingParams
from indexshare.rl.episode import Episode
from indexshare.rl.trajectory import Trajectory


def request_seed(seed: int, number: int, request: int) -> int:
    """Seed of one request of one episode: the same in every run of the same seed, whatever ran beside it."""
    digest = blake2b(f"{seed}/{number}/{request}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & ((1 << SEED_BITS) - 1)


@dataclass
class Counts:
    """What became of episodes.

    Attributes:
        started, finished: episodes.
        carried: episodes that an update of the weights found unfinished, counted at each.
        dropped: finished ones that were not handed out, by reason.
    """

    started: int = 0
    finished: int = 0
    carried: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


class Rollouts:
    """Episodes on an engine.

    Sampling is at temperature 1 without filters, so that the recorded log-probability is that of the law that was
    sampled from; `greedy` is for measuring alone.

    Args:
        llm: around the weights that sample.
        make: the episode of a number.
        stop_ids: that end an action.
        seed: of all draws.
        in_flight: most episodes at a time.
        first: number of the first episode.
        again: numbers below it that are to be made first: a run that goes on had not finished them.
        greedy: take the likeliest token in place of a sample.
    """

    def __init__(
        self, llm: LLM, make: Callable[[int], Episode], *, stop_ids: tuple[int, ...], seed: int, in_flight: int,
        first: int = 0, again: Sequence[int] = (), greedy: bool = False,
    ) -> None:  # fmt: skip
        self.llm, self.version, self.counts = llm, 0, Counts()
        self.next_number, self._again = first, sorted(again)
        self._make, self._stop_ids, self._seed = make, stop_ids, seed
        self._in_flight, self._temperature = in_flight, 0.0 if greedy else 1.0
        self._running: dict[Episode, Generation | None] = {}
        self._done: list[Episode] = []

    @property
    def owed(self) -> list[int]:
        """Numbers of the episodes that were begun, or were to be made again, and have not been handed out."""
        return sorted([*self._again, *(episode.number for episode in (*self._running, *self._done))])

    def collect(self, number: int, *, ahead: bool = False) -> list[Trajectory]:
        """So many finished rollouts, in the order of their numbers.

        Args:
            number: rollouts.
            ahead: start others as soon as there is room, which go on after this call. Otherwise only as many start as
                are wanted, and all of them finish.
        """
        while len(self._done) < number:
            while len(self._running) < self._in_flight and (ahead or len(self._done) + len(self._running) < number):
                self._start()
            self._advance()
        self._done.sort(key=lambda episode: episode.number)
        taken, self._done = self._done[:number], self._done[number:]
        return [episode.trajectory() for episode in taken]

    def pause(self) -> None:
        """Take what unfinished episodes have sampled so far, before the weights change; `collect` goes on behind it."""
        for episode, generation in self._running.items():
            if generation is not None:
                self.llm.engine.abort(generation)
                self._take(episode, generation, whole=False)
                self._running[episode] = None
        self.counts.carried += len(self._running)

    def resume(self, version: int) -> None:
        """The weights have changed."""
        self.llm.model.weights_changed()
        self.version = version

    def drop(self, reason: str, number: int = 1) -> None:
        """Count rollouts that are not used."""
        self.counts.dropped[reason] = self.counts.dropped.get(reason, 0) + number

    def _start(self) -> None:
        number = self._again.pop(0) if self._again else self.next_number
        self.next_number = max(self.next_number, number + 1)
        episode = self._make(number)
        self.counts.started += 1
        self._running[episode] = None
        self._sort_out(episode)

    def _advance(self) -> None:
        """Ask for what is to be asked, compute one step, and take what is finished."""
        for episode, generation in list(self._running.items()):
            if generation is None:
                self._running[episode] = self._ask(episode)
        if self._running:
            self.llm.engine.step()
        for episode, generation in list(self._running.items()):
            if generation is not None and generation.finished:
                if generation.error is not None:
                    raise generation.error
                self._take(episode, generation, whole=True)
                self._running[episode] = None
                self._sort_out(episode)

    def _ask(self, episode: Episode) -> Generation:
        params = SamplingParams(
            max_tokens=episode.room, temperature=self._temperature, logprobs=0, stop_token_ids=self._stop_ids,
            seed=request_seed(self._seed, episode.number, episode.requests),
        )  # fmt: skip
        episode.requests += 1
        return self.llm.engine.submit(episode.prompt, params, f"episode {episode.number}")

    def _take(self, episode: Episode, generation: Generation, *, whole: bool) -> None:
        output = generation.output
        assert output is not None and output.logprobs is not None
        logprobs = [found.logprob for found in output.logprobs]
        episode.receive(output.token_ids, logprobs, self.version, whole=whole)

    def _sort_out(self, episode: Episode) -> None:
        if episode.finished:
            del self._running[episode]
            self._done.append(episode)
            self.counts.finished += 1
