"""The command itself: its verbs, and what becomes of errors.

A user's mistake (ValueError, a missing or refused file) is one line on standard error and exit code 2; so is
training that diverges (FloatingPointError, which says what to do). Ctrl+C is a clean stop with exit code 130.
Anything else is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from indexshare import __version__
from indexshare.cli.bench import bench
from indexshare.cli.complete import complete
from indexshare.cli.curve import curve
from indexshare.cli.doctor import doctor
from indexshare.cli.evaluate import evaluate
from indexshare.cli.export import export
from indexshare.cli.generate import generate
from indexshare.cli.info import info
from indexshare.cli.plan import plan
from indexshare.cli.train import train
from indexshare.cli.verify import verify
from indexshare.config.environment import Environment, read_environment

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def build_app() -> App:
    """The command with all its verbs."""
    app = App(
        name="indexshare",
        version=__version__,
        help="Long-context models with a shared sparse-attention index: run, inspect and train them.",
        help_epilogue="`indexshare VERB --help` explains a verb.",
        suppress_keyboard_interrupt=False,
    )
    for verb in (complete, generate, info, plan, verify, train, curve, export, bench, doctor):
        app.command(verb)
    app.command(evaluate, name="eval")
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command on `argv` (the process's arguments unless given) and return its exit code."""
    environment = Environment()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a narrow terminal encoding is no reason to stop in the middle
    try:
        environment = read_environment()
        if environment.cpu_level:
            from indexshare.ops.native import limit_level

            limit_level(environment.cpu_level)
        tokens = sys.argv[1:] if argv is None else list(argv)
        result = build_app()(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (`| head`) is gone: not an error. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (CycloptsError, ValueError, OSError, FloatingPointError) as error:
        if environment.debug:
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return EXIT_USER_ERROR


def one_line(error: Exception) -> str:
    """The error's own words on one line; system errors are shortened to file and reason."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
