"""What a client is told when something is refused or fails: a status, a sentence, and a kind."""

from __future__ import annotations

from typing import Any

_KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 405: "not_found_error"}
_KINDS |= {413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error"}


class ApiError(Exception):
    """A request that gets no answer.

    Args:
        status: of HTTP.
        message: what is wrong, what was expected, and the fix.
        param: the field that is wrong.
        code: a short name that programs can tell it by, such as `context_length_exceeded`.
        retry_after: seconds after which it may be tried again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """Its kind in the words that both interfaces have."""
        return _KINDS.get(self.status, "api_error")

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    def openai(self) -> dict[str, Any]:
        """Its body for OpenAI's clients."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def anthropic(self) -> dict[str, Any]:
        """Its body for Anthropic's clients."""
        return {"type": "error", "error": {"type": self.kind, "message": self.message}}


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A mistake of the client's."""
    return ApiError(400, message, param=param, code=code)
