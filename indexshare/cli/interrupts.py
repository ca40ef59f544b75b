"""Ctrl+C, known as such whatever error it leads to. Imports next to nothing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def watch_interrupts() -> Iterator[Callable[[], bool]]:
    """Gives what says whether Ctrl+C came while the block ran; it raises KeyboardInterrupt as ever.

    A handler of someone else's is left alone, and so are threads, which get no signals.
    """
    came = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: came
    finally:
        if ours and signal.getsignal(signal.SIGINT) is handle:
            signal.signal(signal.SIGINT, signal.default_int_handler)
