"""Fields of a request's body, read strictly: a wrong type, a value out of range, an unknown name are refused."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from indexshare.config.arguments import as_integer, as_number, shown
from indexshare.serve.errors import bad

# Fields that clients send and that ask for nothing here.
HARMLESS = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "verbosity", "cache_salt", "priority", "request_id", "include_reasoning", "separate_reasoning",
    }
)  # fmt: skip


class Body:
    """A JSON object, field by field; null counts as left out.

    Args:
        content: of the request.
        known: names that this endpoint reads.

    Raises:
        ApiError: an unknown name, with the nearest known one.
    """

    def __init__(self, content: Mapping[str, Any], known: Collection[str]) -> None:
        self.content = {name: value for name, value in content.items() if value is not None}
        for name in self.content:
            if name not in known and name not in HARMLESS:
                near = difflib.get_close_matches(name, sorted(known), n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
                raise bad(f"the request has a field {name!r}; {hint}", name, "unknown_field")

    def __contains__(self, name: str) -> bool:
        return name in self.content

    def get(self, name: str, default: Any = None) -> Any:
        """The value as it is."""
        return self.content.get(name, default)

    def integer(self, name: str, low: int, high: int | None = None) -> int | None:
        """A whole number in a range; None where it is left out."""
        return self._checked(name, lambda value: as_integer(name, value, low=low, high=high))

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number in a range."""
        expected = f"a number from {low:g} to {high:g}"
        return self._checked(name, lambda value: as_number(name, value, expected, lambda x: low <= x <= high))

    def boolean(self, name: str, default: bool = False) -> bool:
        """True or false."""
        return bool(self._typed(name, bool, "true or false", default))

    def text(self, name: str, default: str | None = None) -> str | None:
        """A text."""
        found = self._typed(name, str, "a text", default)
        assert found is None or isinstance(found, str)
        return found

    def object(self, name: str) -> dict[str, Any]:
        """An object, empty where it is left out."""
        return dict(self._typed(name, dict, "an object", {}))

    def list(self, name: str) -> Sequence[Any]:
        """A list, empty where it is left out."""
        found = self._typed(name, list, "a list", [])
        assert isinstance(found, list)
        return found

    def _typed(self, name: str, kind: type, expected: str, default: Any) -> Any:
        value = self.content.get(name, default)
        if value is not default and not isinstance(value, kind):
            raise bad(f"{name} is {shown(value)}; expected {expected}", name)
        return value

    def _checked(self, name: str, check: Callable[[Any], Any]) -> Any:
        if name not in self.content:
            return None
        try:
            return check(self.content[name])
        except ValueError as error:
            raise bad(str(error), name) from None


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object of a body; ApiError for anything else."""
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise bad(f"the body is not valid JSON ({error}); expected an object", code="invalid_json") from None
    if not isinstance(content, dict):
        raise bad(f"the body is {shown(content)}; expected a JSON object", code="invalid_json")
    return content
