"""Standard streams that are closed, full, narrow or never end; Ctrl+C from the first moment on."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from indexshare.cli import prompts
from indexshare.cli.measuring import MeasuringBar, Status

ROOT = Path(__file__).resolve().parents[3]
COMMAND = f"{sys.executable} -m indexshare"
Run = Callable[..., Any]
CLOSED = "error: standard output is closed, results have nowhere to go; use > /dev/null to do without them\n"


def shell(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", program],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("redirection", "code", "error"),
    [
        (
            ">&-",
            2,
            "error: standard output is closed, results have nowhere to go; use > /dev/null to do without them\n",
        ),
        ("2>&-", 0, ""),
        ("<&-", 0, ""),
        (">&- 2>&- <&-", 2, ""),
        ("> /dev/full", 2, "error: No space left on device\n"),
        ("2> /dev/full", 0, ""),
    ],
)
def test_closed_and_full_streams(redirection: str, code: int, error: str) -> None:
    found = shell(f"{COMMAND} info tiny {redirection}")
    assert (found.returncode, found.stderr) == (code, error)
    assert found.stdout.startswith("tiny (preset") == (code == 0)


def test_errors_that_nobody_can_read() -> None:
    assert shell(f"{COMMAND} info tinny 2> /dev/full").returncode == 2
    closed = shell(f"{COMMAND} tokenize --file - <&-")
    assert (closed.returncode, closed.stderr) == (
        2, "error: standard input is closed; give a file, or something to read with < or |\n",
    )  # fmt: skip


@pytest.mark.parametrize("columns", ["0", "00", ""])
def test_a_width_of_nothing_is_no_width(columns: str) -> None:
    plain = shell(f"{COMMAND} --help").stdout
    assert shell(f"{COMMAND} --help", COLUMNS=columns).stdout == plain != ""


def test_prompts_from_pipes(run: Run, model_dir: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: (time.sleep(0.2), pipe.write_text("def f")))
    writer.start()
    result = run("tokenize", "--file", pipe, "--model", model_dir)
    writer.join()
    assert "'de'" in result.out or "'def'" in result.out
    assert f"reading {pipe}, a pipe: waiting for what is written into it" in result.err
    substituted = shell(f"{COMMAND} tokenize --model pico --file <(printf 'def f')")
    assert "def" in substituted.stdout and "waiting" not in substituted.stderr


def test_an_endless_file_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "_MOST_BYTES", 1000)
    result = run("tokenize", "--file", "/dev/zero")
    assert (result.code, result.out) == (2, "")
    assert "/dev/zero holds more than 1,000 bytes" in result.err


INTERRUPTED = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(10**6): pass
            except KeyboardInterrupt:
                {then}
sys.meta_path.insert(0, Interrupt())
from indexshare.cli import main
sys.exit(main(["generate", "x", "--model", "pico"]))
"""


@pytest.mark.parametrize("module", ["cyclopts", "rich.console", "tokenizers", "torch"])
@pytest.mark.parametrize("then", ["raise", "raise ImportError('numpy failed')", "raise ValueError('odd') from None"])
def test_ctrl_c_while_modules_are_imported(module: str, then: str) -> None:
    program = INTERRUPTED.format(module=module, then=then)
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )  # fmt: skip
    # Python itself ends a process by the signal where code made from a string was interrupted.
    assert found.returncode in (130, -signal.SIGINT)
    assert (found.stdout, found.stderr) == ("", "\nstopped\n")


def test_a_handler_of_someone_else_stays(run: Run) -> None:
    def own(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGINT, own)
    try:
        assert run("info", "tiny").code == 0
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)
    assert run("info", "tiny").code == 0
    assert signal.getsignal(signal.SIGINT) is before


NARROW = """
import sys, time
from pathlib import Path
from indexshare.cli.measuring import MeasuringBar, Status
from indexshare.train.progress import Reporter
with MeasuringBar() as bar, bar.stage("a measurement with a long name") as progress:
    progress(123_456, 987_654)
with Status() as status:
    status("reading", "a/very/long/path/" * 9)
    time.sleep(0.2)
print("training")
reporter = Reporter(Path(sys.argv[1]), 0)
for step in range(3):
    reporter.progress(f"pretrain {step}/1000  loss 3.4567  draft_loss 3.4567  2,345 tokens/s  3m05s left in stage")
    time.sleep(0.3)
reporter.close()
"""


def test_progress_stays_on_one_line_in_a_narrow_terminal(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(NARROW)
    program = f"stty cols 30; {sys.executable} {tmp_path}/program.py {tmp_path}"
    found = subprocess.run(
        ["script", "-qec", program, "/dev/null"], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert found.returncode == 0
    bars, training = found.stdout.split("training")
    assert "123,456" in bars and "pretrain 2/1000" in training
    # What is more than one line high moves the cursor up to be drawn anew; a bar that goes moves up once, at its end.
    assert bars.count("\x1b[1A") <= 2 and "\x1b[1A" not in training


def test_long_work_says_so_where_nothing_moves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexshare.cli.measuring._LONG_S", -1.0)
    with Status() as status:
        status("reading", "a.py")
        status("reading", "b.py")
    with MeasuringBar() as bar, bar.stage("one") as progress:
        progress(1, 2)
    error = capsys.readouterr().err
    assert error.startswith("reading a.py; this takes a while\none: ") and "b.py" not in error
