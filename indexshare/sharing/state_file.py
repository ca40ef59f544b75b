"""What long work has found so far, in a file that is always whole: the same request goes on from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from indexshare.text.files import check_can_write, replacing

_FORMAT = 1


class StateFile:
    """A JSON file of a request and what was found for it; without a path, nothing is kept.

    Args:
        path: the file; may be there already.
        request: plain values that decide what is found. A file of another request is refused.

    Raises:
        ValueError: the file is of another request or another kind, or cannot be written.
    """

    def __init__(self, path: Path | None, request: dict[str, Any]) -> None:
        self.path, self._request = path, json.loads(json.dumps(request))
        self.found: dict[str, Any] = {}
        if path is None:
            return
        check_can_write(path)
        if path.is_file() and path.stat().st_size:
            self.found = self._read(path)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}")
            was, found = dict(content["request"]), dict(content["found"])
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{path} does not keep such work ({error}); give another file, or remove it") from None
        differing = [key for key in {**was, **self._request} if was.get(key) != self._request.get(key)]
        if differing:
            key = differing[0]
            raise ValueError(
                f"{path} keeps other work: {key} was {was.get(key)!r}, is now {self._request.get(key)!r}; give another "
                "file, or the same options to go on with it"
            )
        return found

    def save(self, found: dict[str, Any]) -> None:
        """Put what was found in the place of what was there."""
        self.found = found
        if self.path is None:
            return
        with replacing(self.path) as temporary:
            content = {"format": _FORMAT, "request": self._request, "found": found}
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
