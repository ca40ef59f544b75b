"""From a model to a server that listens, and its end: nothing is cut off that can be finished."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any

import uvicorn

from indexshare.serve.app import build_app
from indexshare.serve.engine import EngineClient
from indexshare.serve.errors import ApiError
from indexshare.serve.metrics import Metrics
from indexshare.serve.model import ServedModel
from indexshare.serve.service import Limits, Service
from indexshare.serve.wire import EngineSettings

_log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Uvicorn's, which tells the service when it is to stop.

    Requests that run have `grace_s` to finish; then each is ended with an error of its own.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._ending: Any = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals stop the server politely; uvicorn would raise them again behind that, which ends the process."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal stops politely, the second one at once."""
        super().handle_exit(sig, frame)
        if not self._service.stopping:
            self._service.stopping = True
            loop = asyncio.get_running_loop()
            self._ending = loop.call_later(self._service.limits.grace_s, self._end_all)
        else:
            self._end_all()

    def _end_all(self) -> None:
        self._service.engine.end_all(ApiError(503, "the server has stopped", code="stopping", retry_after=5))


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; port 0 for a free one. ValueError where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
        opened.listen(2048)
    except (OSError, OverflowError) as error:
        opened.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"cannot listen at {host}:{port}: {reason}; choose another --port or --host") from None
    return opened


def serve(
    model: ServedModel,
    settings: EngineSettings,
    listening: socket.socket,
    *,
    limits: Limits,
    keys: Collection[str] = (),
    announce: Callable[[str], None] = print,
    note: Callable[[str], None] = _log.warning,
) -> None:
    """Load the model in a process of its own and serve it until a signal comes.

    Args:
        model: as clients see it.
        settings: what the engine loads.
        listening: where; see `open_socket`.
        limits: what is too much.
        keys: of clients; anybody without any.
        announce: told the address once requests are taken.
        note: told what the user should know, such as the death of the engine.

    Raises:
        ValueError: the model cannot be loaded.
    """
    engine = EngineClient(settings, lambda reason: note(f"the engine died ({reason}) and is being restarted"))
    service = Service(engine=engine, model=model, metrics=Metrics(), limits=limits)
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    @asynccontextmanager
    async def running(app: Any) -> AsyncIterator[None]:
        yield
        await engine.stop()

    config = uvicorn.Config(
        build_app(service, keys, running), log_level="warning", access_log=False, lifespan="on",
        timeout_graceful_shutdown=int(limits.grace_s) + 5,
    )  # fmt: skip
    server = Server(config, service)

    async def main() -> None:
        ready = await engine.start()
        model.max_context, model.cache_tokens = ready.max_context, ready.cache_tokens
        announce(address)
        try:
            await server.serve(sockets=[listening])
        finally:
            await engine.stop()

    asyncio.run(main())
