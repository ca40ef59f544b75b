"""The command itself: its verbs, and what becomes of errors.

A user's mistake (ValueError, a missing or refused file) is one line on standard error and exit code 2; so is
training that diverges (FloatingPointError, which says what to do). Ctrl+C is a clean stop with exit code 130.
Anything else is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence

from cyclopts import App, CycloptsError

from indexshare import __version__
from indexshare.cli.bench import bench
from indexshare.cli.cache import cache
from indexshare.cli.chat import chat
from indexshare.cli.complete import complete
from indexshare.cli.curve import curve
from indexshare.cli.distill import distill
from indexshare.cli.doctor import doctor
from indexshare.cli.evaluate import evaluate
from indexshare.cli.export import export
from indexshare.cli.generate import generate
from indexshare.cli.info import info
from indexshare.cli.models import models
from indexshare.cli.overlap import overlap
from indexshare.cli.plan import plan
from indexshare.cli.rl import rl
from indexshare.cli.score import score
from indexshare.cli.search import search
from indexshare.cli.serve import serve
from indexshare.cli.shell import shell_completion
from indexshare.cli.streams import complain, drop_output, open_streams
from indexshare.cli.tokenize import tokenize
from indexshare.cli.train import train
from indexshare.cli.verify import verify
from indexshare.config.environment import (
    Environment,
    ignore_useless_columns,
    let_waiting_threads_sleep,
    read_environment,
)

EXIT_USER_ERROR = 2


def build_app() -> App:
    """The command with all its verbs."""
    app = App(
        name="indexshare",
        version=__version__,
        version_flags=["--version", "-V"],
        help="Long-context models with a shared sparse-attention index: run, inspect and train them.",
        help_epilogue="`indexshare VERB --help` explains a verb.",
        suppress_keyboard_interrupt=False,
    )
    for verb in (complete, generate, score, tokenize, models, info, plan, verify, train, curve, export, bench, cache):
        app.command(verb)
    app.command(rl)
    app.command(chat)
    app.command(serve)
    app.command(overlap)
    app.command(search)
    app.command(distill)
    app.command(doctor)
    app.command(evaluate, name="eval")
    app.command(shell_completion)
    return app


def run(argv: Sequence[str] | None, interrupted: Callable[[], bool]) -> int:
    """The command on `argv` (the process's arguments if None), with errors as lines; Ctrl+C is the caller's.

    `interrupted` says whether an error is the work of Ctrl+C.
    """
    environment = Environment()
    try:
        open_streams()
        ignore_useless_columns()
        let_waiting_threads_sleep()
        environment = read_environment()
        if environment.cpu_level:
            from indexshare.ops.native import limit_level

            limit_level(environment.cpu_level)
        tokens = sys.argv[1:] if argv is None else list(argv)
        result = build_app()(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BrokenPipeError:  # the reader of our output (`| head`) is gone: not an error
        drop_output()
        return 0
    except (CycloptsError, ValueError, OSError, FloatingPointError) as error:
        if interrupted():
            raise KeyboardInterrupt from error
        if environment.debug:
            traceback.print_exc()
        complain(f"error: {one_line(error)}")
        drop_output()
        return EXIT_USER_ERROR


def one_line(error: Exception) -> str:
    """The error's own words on one line; system errors are shortened to file and reason."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
