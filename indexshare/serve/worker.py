"""The engine's process: orders come through a pipe, steps run while there is work, and reports go back."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections import deque
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from indexshare.serve.wire import (
    Abort,
    Broken,
    EngineSettings,
    EngineState,
    Order,
    Ready,
    Refused,
    Report,
    Score,
    Scored,
    Stepped,
    Stop,
    Submit,
)

if TYPE_CHECKING:
    from indexshare.engine.core import Engine, Generation


def run_engine(connection: Connection, settings: EngineSettings) -> None:
    """Load the model and serve orders until `Stop`, or until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C in a terminal reaches both; the server decides
    try:
        from indexshare.engine.llm import LLM

        llm = LLM(settings.model, **settings.options)  # type: ignore[arg-type]
    except (ValueError, OSError) as error:
        connection.send(Broken(str(error)))
        return
    worker = Worker(llm.engine, connection)
    connection.send(Ready(llm.max_context, llm.cache.num_tokens, llm.model.config.vocab_size, worker.state))
    worker.run()


class Worker:
    """Carries out orders.

    Args:
        engine: all its requests are this worker's.
        connection: to the server.
    """

    def __init__(self, engine: Engine, connection: Connection) -> None:
        self._engine, self._connection = engine, connection
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._generations: dict[int, Generation] = {}
        self._scores: deque[Score] = deque()
        self._reading = threading.Lock()

    @property
    def state(self) -> EngineState:
        """What the engine is doing now."""
        scheduler, blocks = self._engine.scheduler, self._engine.allocator.num_blocks
        used = blocks - self._engine.allocator.num_free
        return EngineState(
            running=scheduler.num_running, waiting=scheduler.num_waiting, blocks=blocks, blocks_used=used
        )

    def run(self) -> None:
        """Work until `Stop`."""
        threading.Thread(target=self._read_orders, daemon=True).start()
        while self._take_orders():
            self._step()

    def _read_orders(self) -> None:
        """Put orders in line, grammars read already: that may take longer than a step."""
        while True:
            try:
                order = self._connection.recv()
            except (EOFError, OSError):
                os._exit(0)  # nobody is left to compute for
            if isinstance(order, Submit):
                try:
                    self._engine.prepare(order.params)
                except ValueError as error:
                    self._report(Refused(order.key, str(error)))
                    continue
            self._orders.put(order)

    def _take_orders(self) -> bool:
        """Carry out what is in line, waiting for something if there is no work; False for the end."""
        idle = not self._engine.has_work and not self._scores
        while True:
            try:
                order = self._orders.get(block=idle)
            except queue.Empty:
                return True
            idle = False
            if isinstance(order, Stop):
                return False
            self._carry_out(order)

    def _carry_out(self, order: Order) -> None:
        if isinstance(order, Submit):
            try:
                self._generations[order.key] = self._engine.submit(order.ids, order.params)
            except ValueError as error:
                self._report(Refused(order.key, str(error)))
        elif isinstance(order, Score):
            self._scores.append(order)
        elif isinstance(order, Abort):
            generation = self._generations.pop(order.key, None)
            self._scores = deque(score for score in self._scores if score.key != order.key)
            if generation is not None:
                self._engine.abort(generation)
                self._report(Stepped((), self.state))

    def _step(self) -> None:
        self._score()
        try:
            self._engine.step()
        except Exception as error:
            self._report(Broken(f"{type(error).__name__}: {error}"))
            raise
        found = []
        for key, generation in list(self._generations.items()):
            if generation.chunks:
                found.append((key, list(generation.chunks)))
                generation.chunks.clear()
            if generation.finished:
                del self._generations[key]
                if generation.error is not None:
                    self._report(Refused(key, str(generation.error), wrong=False))
        if found:
            self._report(Stepped(found, self.state))

    def _score(self) -> None:
        """Score one text, if the cache has room for it beside what runs."""
        if not self._scores:
            return
        allocator = self._engine.allocator
        if self._engine.has_work and allocator.blocks_for(len(self._scores[0].ids)) > allocator.num_free:
            return
        order = self._scores.popleft()
        try:
            self._report(Scored(order.key, self._engine.score(order.ids, 1, top=order.top)))
        except ValueError as error:
            self._report(Refused(order.key, str(error)))

    def _report(self, report: Report) -> None:
        with self._reading:
            self._connection.send(report)
