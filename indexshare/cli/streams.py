"""The standard streams of the process: closed ones, broken ones, and those that cannot show every character."""

from __future__ import annotations

import contextlib
import io
import os
import sys


def open_streams() -> None:
    """Make the standard streams fit to be used: a closed error stream takes what it is given and keeps nothing.

    Raises:
        ValueError: standard output is closed, so that results would have nowhere to go.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # the next file that is opened would take its place, and what is written to it
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for the rest of the process
    if sys.stdout is None:
        raise ValueError("standard output is closed, results have nowhere to go; use > /dev/null to do without them")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a narrow terminal encoding is no reason to stop in the middle


def complain(text: str) -> None:
    """A line on standard error, if anybody is there to read it."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr)


def drop_output() -> None:
    """Let go of output that nobody takes (a pipe without a reader, a full disk): Python would complain at exit."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
