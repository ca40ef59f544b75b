"""The application: paths, keys, and errors in the form that each interface expects."""

from __future__ import annotations

import hmac
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from indexshare.serve import plain
from indexshare.serve.chat import chat_completions
from indexshare.serve.completions import completions
from indexshare.serve.errors import ApiError
from indexshare.serve.messages import count_tokens, messages
from indexshare.serve.responses import responses
from indexshare.serve.service import Service

_OPEN = ("/health", "/")  # paths that need no key
_log = logging.getLogger(__name__)


def build_app(service: Service, keys: Collection[str] = (), start: Any = None) -> Starlette:
    """The server around a service.

    Args:
        service: with its engine started, or to be started by `start`.
        keys: of clients that may use it; anybody may without any.
        start: an asynchronous context in which the application runs.
    """
    routes = [
        Route("/", plain.page),
        Route("/health", plain.health),
        Route("/version", plain.version),
        Route("/metrics", plain.metrics),
        Route("/v1/models", plain.models),
        Route("/v1/models/{name:path}", plain.model),
        Route("/tokenize", plain.tokenize, methods=["POST"]),
        Route("/detokenize", plain.detokenize, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/responses", responses, methods=["POST"]),
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
    ]
    handlers: Any = {ApiError: api_error, HTTPException: plain.not_here, ClientDisconnect: gone, Exception: failure}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=start or _nothing)
    app.state.service = service
    app.add_middleware(Gate, service=service, keys=tuple(keys))
    return app


@asynccontextmanager
async def _nothing(app: Starlette) -> AsyncIterator[None]:
    yield


async def api_error(request: Request, error: Exception) -> Response:
    """What was refused, in the form of the interface that was used."""
    assert isinstance(error, ApiError)
    content = error.anthropic() if request.url.path.startswith("/v1/messages") else error.openai()
    return JSONResponse(content, status_code=error.status, headers=error.headers)


async def gone(request: Request, error: Exception) -> Response:
    """Nobody reads this."""
    return Response(status_code=499)


async def failure(request: Request, error: Exception) -> Response:
    """A defect of ours: the client gets a sentence, the log the rest."""
    return await api_error(request, ApiError(500, "the server failed; its log says how", code="internal_error"))


class Gate:
    """Before every request: is there a key, and is it one of ours? Behind it: what became of it.

    Args:
        app: what is behind.
        service: whose metrics count.
        keys: those that open it.
    """

    def __init__(self, app: Callable[..., Any], service: Service, keys: Collection[str]) -> None:
        self._app, self._service, self._keys = app, service, [key.encode() for key in keys]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let it through, or answer 401."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499

        async def counting(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if self._keys and scope["path"] not in _OPEN and not self._has_key(scope):
                error = ApiError(401, "no valid API key; send it as Authorization: Bearer KEY", code="invalid_api_key")
                await (await api_error(Request(scope), error))(scope, receive, counting)
            else:
                await self._app(scope, receive, counting)
        finally:
            known = scope["path"] if "endpoint" in scope else "other"
            self._service.metrics.requests.labels(known, str(status)).inc()
            if status == 499:
                self._service.metrics.disconnected.inc()

    def _has_key(self, scope: Any) -> bool:
        headers = dict(scope["headers"])
        given = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ").strip()
        return any(hmac.compare_digest(given, key) for key in self._keys)
