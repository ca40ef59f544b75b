"""The command `indexshare`: one verb per job. A room of the package is imported only when its verb runs.

This file imports next to nothing, so that Ctrl+C is a clean stop from the first moment on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from indexshare.cli.interrupts import watch_interrupts

if TYPE_CHECKING:
    from cyclopts import App

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command on `argv` (the process's arguments unless given) and return its exit code."""
    with watch_interrupts() as interrupted:
        try:
            from indexshare.cli.app import run

            return run(argv, interrupted)
        except KeyboardInterrupt:
            pass
        except Exception:
            if not interrupted():  # an import that Ctrl+C hits may fail with any error
                raise
    if sys.stderr is not None:
        print("\nstopped", file=sys.stderr)
    return EXIT_INTERRUPTED


def build_app() -> App:
    """The command with all its verbs."""
    from indexshare.cli import app

    return app.build_app()


__all__ = ["build_app", "main"]
