"""What the benchmark programs share: a measurement in a process of its own, the same prompt for everybody."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class ChildFailed(Exception):
    """A measuring process ended without a result; the text says how."""


def run_child(script: Path, arguments: list[str], threads: int) -> dict[str, Any]:
    """Run a program of ours in a fresh process; its last line of output is the result, its errors are shown.

    Raises:
        ChildFailed: it ended with an error, or the system ended it.
    """
    search = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": search, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode < 0:
        raise ChildFailed(f"ended by the system (signal {-done.returncode}), most likely for want of memory")
    if done.returncode:
        raise ChildFailed(f"ended with code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def quiet_transformers() -> Any:
    """The transformers module without progress bars, network or chatter."""
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers


def installed(*names: str) -> dict[str, str | None]:
    """Versions of packages, None for those that are absent."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def machine(*packages: str) -> dict[str, Any]:
    """What the numbers were measured on: processor, load, and the versions of these packages."""
    from indexshare import __version__
    from indexshare.planner.machine import describe_machine

    return describe_machine() | {"versions": {"indexshare": __version__} | installed(*packages)}


def prompt_ids(vocab_size: int, size: int) -> list[int]:
    """The same random prompt for every contender."""
    import torch

    return torch.randint(1, vocab_size, (size,), generator=torch.Generator().manual_seed(size)).tolist()
