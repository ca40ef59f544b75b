"""The helpers of a step: `team.hpp` by itself, under the checker of threads where there is one; and after a fork."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from indexshare.cache.paged import PagedCache
from indexshare.config.presets import preset
from indexshare.ops.native import PACKAGE
from indexshare.step.native_step import NativeStep, unavailable
from tests.unit.step.test_native_step import random_model

HERE = Path(__file__).parent


@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])
def test_the_team_of_a_step(tmp_path: Path, checked: bool) -> None:
    program = tmp_path / "team"
    flags = ["-std=c++17", "-O1", "-g", "-pthread", *(["-fsanitize=thread"] if checked else [])]
    command = ["c++", *flags, "-I", str(PACKAGE / "step"), str(HERE / "team_check.cpp"), "-o", str(program)]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine cannot compile it: {error}")
    run = subprocess.run([str(program)], capture_output=True, text=True, timeout=300, check=False)
    if checked and "unexpected memory mapping" in run.stderr:
        pytest.skip("the checker of threads does not run on this system")
    assert run.returncode == 0 and run.stdout == "fine\n", run.stdout + run.stderr[-3000:]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.skipif(unavailable() is not None, reason="no native step")
def test_a_process_that_was_forked_decodes() -> None:
    """The helpers stay behind in the parent: the child makes its own and does not wait for those."""
    model = random_model(preset("tiny"), 4)
    cache, step = PagedCache(model.config, 2, 8), NativeStep(model)
    view = cache.view([[0]], [(0, 1)])
    torch.set_num_threads(2)
    with torch.inference_mode():
        expected = step([5], view)[1]
        child = os.fork()
        if child == 0:  # leaves without a word to pytest
            try:
                os._exit(0 if torch.equal(step([5], view)[1], expected) else 1)
            finally:
                os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
