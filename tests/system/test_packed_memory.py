"""Loading packed weights takes little more memory than they do: measured in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from indexshare.checkpoint.save import save_model
from indexshare.config import preset
from indexshare.model.glm import GlmMoeDsa

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
import indexshare.engine.llm
from indexshare.adapt.quantized import packing
from indexshare.checkpoint.load import load_model

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))

load_model("pico", adapt=packing("int8"))  # what is loaded and allocated once
before = peak()
model = load_model(sys.argv[1], dtype="float32", adapt=packing(sys.argv[2]))
print(peak() - before, sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty-one million parameters in bfloat16: 82 MB, and 164 MB in the type they are loaded in."""
    folder = tmp_path_factory.mktemp("packed") / "model"
    config = preset("nano").replace(
        hidden_size=384, moe_intermediate_size=256, n_routed_experts=16, num_hidden_layers=8,
        indexer_types=("full",) * 3 + ("shared",) * 5, mlp_layer_types=("dense",) + ("sparse",) * 7,
        num_nextn_predict_layers=0,
    )  # fmt: skip
    save_model(GlmMoeDsa(config).initialise(0).to(torch.bfloat16), folder)
    return folder


@pytest.mark.parametrize(("weights", "bound"), [("int8", 1.5), ("int4", 1.7)])
def test_peak_of_loading(checkpoint: Path, weights: str, bound: float) -> None:
    """Loaded first and packed afterwards it is four and seven times their size."""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    command = [sys.executable, "-c", PROGRAM, str(checkpoint), weights]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    peak, size = map(int, done.stdout.split())
    assert peak <= bound * size, f"{peak:,} bytes above the program for {size:,} bytes of weights"
