"""One writer at a time: the second is refused by name, and a killed one leaves nothing that blocks."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from indexshare.checkpoint import lock
from indexshare.checkpoint.load import load_model
from indexshare.checkpoint.lock import file_lock, folder_lock
from indexshare.checkpoint.save import save_model
from indexshare.config.presets import preset
from indexshare.model.glm import GlmMoeDsa

ROOT = Path(__file__).resolve().parents[3]
HOLDER = """
import sys, time
from indexshare.checkpoint.lock import folder_lock
with folder_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `tmp_path/run`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def enter(lock: AbstractContextManager[None]) -> None:
    with lock:
        pass


def test_a_second_process_is_refused_and_a_killed_one_does_not_block(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"run is being written by process {holder.pid} \(-c .*, since \d+-"):
        enter(folder_lock(tmp_path / "run"))
    model = GlmMoeDsa(preset("tiny").replace(vocab_size=320)).initialise(seed=0)
    with pytest.raises(ValueError, match=f"is being written by process {holder.pid}"):
        save_model(model, tmp_path / "run")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".indexshare.lock"]
    save_model(model, tmp_path / "run")
    assert load_model(tmp_path / "run").config.vocab_size == 320
    assert not list((tmp_path / "run").glob(".*")) and [p.name for p in tmp_path.iterdir()] == ["run"]


def test_locks_come_and_go_without_a_trace(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "new" / "folder"):
        assert (tmp_path / "new" / "folder" / ".indexshare.lock").is_file()
    assert not (tmp_path / "new" / "folder").exists(), "made for the lock alone"
    with folder_lock(tmp_path / "kept"):
        (tmp_path / "kept" / "result").write_text("x")
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["result"]
    with file_lock(tmp_path / "a.gguf"), file_lock(tmp_path / "b.gguf"), folder_lock(tmp_path):
        assert sorted(p.name for p in tmp_path.glob(".*")) == [".a.gguf.lock", ".b.gguf.lock", ".indexshare.lock"]
        with pytest.raises(ValueError, match=rf"process {os.getpid()}, this one"):
            enter(file_lock(tmp_path / "a.gguf"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "new"]
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        enter(folder_lock(tmp_path / "kept" / "result"))


def test_of_many_threads_one_at_a_time_holds_it(tmp_path: Path) -> None:
    inside, most, held = [0], [0], [0]

    def work() -> None:
        for _ in range(200):
            try:
                with file_lock(tmp_path / "x"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    held[0] += 1
                    inside[0] -= 1
            except ValueError:
                continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1 and held[0] > 0 and list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int) -> None:
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_lock", refused)
    with folder_lock(tmp_path):
        pass
