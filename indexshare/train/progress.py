"""What a run tells: a JSONL file always, a progress line for people, TensorBoard on request."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

METRICS_FILE = "metrics.jsonl"
_PLAIN_SECONDS = 30.0  # between progress lines where there is no terminal


def duration(seconds: float) -> str:
    """Seconds as `1h02m`, `3m05s` or `12s`."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


class MetricsFile:
    """`metrics.jsonl` of a run: one JSON object per update or evaluation, each with the global `step`.

    Args:
        path: the file; made if missing.
        step: resuming from this step; records after it are dropped, for they will be made again.
    """

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:  # the line that a kill cut short
                    continue
                if record["step"] <= step:
                    kept.append(line)
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Reporter:
    """Progress of a run on a terminal (one live line), or as plain lines every half minute elsewhere."""

    def __init__(self, directory: Path, step: int, *, tensorboard: bool = False, quiet: bool = False) -> None:
        self._metrics = MetricsFile(directory / METRICS_FILE, step)
        self._board = _tensorboard(directory, step) if tensorboard else None
        self._console = Console(file=sys.stderr, quiet=quiet)
        self._live: Live | None = None
        self._last = 0.0
        if self._console.is_terminal and not quiet:
            self._live = Live(Text("starting"), console=self._console, refresh_per_second=4)
            self._live.start()

    def say(self, message: str) -> None:
        """One line that stays."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)  # in a file, one line is one line

    def record(self, record: dict[str, Any]) -> None:
        """Metrics of one update or evaluation."""
        self._metrics.write(record)
        if self._board is not None:
            for key, value in record.items():
                if isinstance(value, float):
                    self._board.add_scalar(key, value, record["step"])

    def progress(self, line: str) -> None:
        """The line that moves."""
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        elif time.monotonic() - self._last >= _PLAIN_SECONDS:
            self._last = time.monotonic()
            self.say(line)

    def close(self) -> None:
        """Leave the terminal and the files in order."""
        if self._live is not None:
            self._live.stop()
        self._metrics.close()
        if self._board is not None:
            self._board.close()


def _tensorboard(directory: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("TensorBoard is not installed; install `indexshare[tensorboard]` or leave it out") from error
    return SummaryWriter(directory / "tensorboard", purge_step=step + 1)
