"""A clean stop of a run at any moment: Ctrl+C and SIGTERM as a flag."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any


class StopRequested:
    """Turns Ctrl+C and SIGTERM into a flag while it is active; a second Ctrl+C interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequested:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: then nobody can send us one either
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.requested:
            # Not `print`: the handler may interrupt one. Standard error is descriptor 2.
            os.write(2, b"\nstopping after this update or measurement; Ctrl+C again stops without a checkpoint\n")
        self.requested = True
