"""Facts about the machine: the parsing behind them, and memory of this process."""

import platform
import subprocess
import sys

import pytest

from indexshare.planner import machine

CPUINFO = """processor	: 0
model name	: Some Processor 9000
flags		: fpu avx2 avx512f avx512bw avx512vl amx_tile amx_bf16
"""


def test_processor_features_are_parsed() -> None:
    assert machine.cpu_name(CPUINFO) == "Some Processor 9000"
    expected = {"avx2": True, "avx512": True, "avx512_bf16": False, "amx": True, "neon": False}
    assert machine.cpu_features(CPUINFO) == expected
    arm = machine.cpu_features("Features\t: fp asimd crc32\n")
    assert arm["neon"]
    assert not arm["avx2"]


def test_an_unknown_system_has_no_features() -> None:
    assert machine.cpu_features("") == {}
    assert machine.cpu_name("") != ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_this_process_alone() -> None:
    """A program started by a large one must not report the large one's peak as its own."""
    ballast = bytearray(b"x") * (200 << 20)
    assert machine.peak_memory_bytes() >= machine.resident_memory_bytes() >= len(ballast)
    program = "from indexshare.planner.machine import peak_memory_bytes; print(peak_memory_bytes())"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 0 < int(child.stdout) < len(ballast)


def test_a_report_names_what_it_ran_on() -> None:
    facts = machine.describe_machine()
    assert facts["python"] == platform.python_version()
    assert facts["cores"] >= 1
    assert facts["processor"] == machine.cpu_name()
    assert facts["features"] == [name for name, present in machine.cpu_features().items() if present]
