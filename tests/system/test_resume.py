"""A run killed without warning, in the middle of two stages, ends with the losses of a run that was never killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS_PER_STAGE = 8
RECIPE = """
from indexshare.config.presets import preset
from indexshare.data.corpus import TextFolder
from indexshare.train.objectives import Balance, Draft, Indexer, NextToken
from indexshare.train.optim import OptimConfig
from indexshare.train.recipe import Recipe
from indexshare.train.stages import index_share, indexer_warmup, pretrain, sparse

FULL = (NextToken(), Draft(after=0.5), Balance())
SPARSE = (NextToken(), Draft(), Indexer(), Balance())
ROWS = {"tokens": STEPS * 256, "batch_tokens": 256, "micro_tokens": 64, "optim": OptimConfig(muon_lr=1e-2)}

def recipe():
    model = preset("tiny").replace(vocab_size=320)
    return Recipe(
        name="killed",
        model=model,
        text=TextFolder(path="TEXT", held_out=0.3),
        stages=(
            pretrain(sequence_length=32, objectives=FULL, **ROWS),
            indexer_warmup(sequence_length=32, **ROWS),
            sparse(sequence_length=32, objectives=SPARSE, **ROWS),
            index_share(model.share_plan, sequence_length=64, objectives=SPARSE, **ROWS),
        ),
        held_out_windows=2,
        evaluate_every=3,
        dtype="DTYPE",
    )
"""


@pytest.fixture
def recipe(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(12):
        body = "".join(f"def f{number}_{n}(x):\n    return x + {n * number}\n" for n in range(30))
        (text / f"file{number}.py").write_text(body)
    path = tmp_path / "killed.py"
    filled = RECIPE.replace("TEXT", str(text)).replace("STEPS", str(STEPS_PER_STAGE), 1)
    path.write_text(filled.replace("DTYPE", request.param))
    return path


def start(recipe: Path, out: Path, checkpoint_minutes: float) -> subprocess.Popen[str]:
    """`indexshare train` as a process of its own, with two workers."""
    command = [sys.executable, "-m", "indexshare", "train", str(recipe), "--out", str(out)]
    command += ["--checkpoint-minutes", str(checkpoint_minutes)]
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": search, "OMP_NUM_THREADS": "2"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert Path(out.strip()).is_dir()
    return err


def steps_written(out: Path) -> int:
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return max((int(line.split('"step": ')[1].split(",")[0]) for line in lines if line.endswith("}")), default=0)


def kill_after(process: subprocess.Popen[str], out: Path, step: int) -> int:
    """SIGKILL once metrics of `step` are there; the last step that was written."""
    while steps_written(out) < step:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return steps_written(out)


def records(out: Path) -> list[dict[str, Any]]:
    """All metrics but speeds; JSON writes floats so that they read back bit for bit."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in lines]


@pytest.mark.parametrize("recipe", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)], indirect=True)
def test_killed_twice_and_resumed_gives_the_same_losses(recipe: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start(recipe, whole, 10))
    # In the warm-up with a checkpoint at every update: the kill falls somewhere between and inside writes.
    first = kill_after(start(recipe, cut, 1e-9), cut, STEPS_PER_STAGE + 3)
    assert STEPS_PER_STAGE < first < 2 * STEPS_PER_STAGE
    # In the last stage with checkpoints at the ends of stages only: metrics run ahead of the checkpoint.
    second = kill_after(start(recipe, cut, 10), cut, 3 * STEPS_PER_STAGE + 3)
    assert 3 * STEPS_PER_STAGE + 3 <= second < 4 * STEPS_PER_STAGE
    err = finish(start(recipe, cut, 10))
    assert f"resumed at step {3 * STEPS_PER_STAGE}, stage sparse" in err

    expected, actual = records(whole), records(cut)
    steps = [r["step"] for r in expected if "loss" in r]
    assert steps == list(range(1, 4 * STEPS_PER_STAGE + 1))
    assert actual == expected
    weights = "model/model.safetensors"
    assert (cut / weights).read_bytes() == (whole / weights).read_bytes()
