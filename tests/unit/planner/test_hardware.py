"""Machines by name, several devices of one, files of one's own, and what is wrong with a file."""

import re
from pathlib import Path

import pytest

from indexshare.planner.hardware import USUAL, find_machines, known_machines

MINE = """
[mine]
label = "my machine"
memory_gib = 64
bandwidth_gb_s = 100
tflops = { bf16 = 2 }
"""


def test_the_table_is_whole() -> None:
    machines = known_machines()
    assert {"rtx-3090", "rtx-4090", "rtx-5090", "mac-studio-192", "mac-studio-512", "h100", "h200", "b200"} <= set(
        machines
    )
    assert all(machine.source and machine.label for machine in machines.values())
    assert all(len(find_machines(name)) == 1 for name in USUAL)


def test_several_devices_share_what_is_theirs_and_not_the_host() -> None:
    (one,), (four,) = find_machines("rtx-5090"), find_machines("rtx-5090x4")
    assert four.memory_bytes == 4 * one.memory_bytes
    assert (four.bandwidth, four.flops("bf16")) == (4 * one.bandwidth, 4 * one.flops("bf16"))
    assert four.host_memory_bytes == one.host_memory_bytes
    assert one.host_bandwidth == 50e9  # the link is narrower than the memory behind it
    assert four.host_bandwidth == 90e9  # four links are wider


def test_a_type_without_a_rate_runs_at_the_next_wider_one() -> None:
    (old,) = find_machines("rtx-3090")
    assert old.flops("fp4") == old.flops("int8") == 284e12
    (laptop,) = find_machines("laptop-avx2")
    assert laptop.flops("fp8") == laptop.flops("float32")


def test_a_file_of_machines(tmp_path: Path) -> None:
    file = tmp_path / "machines.toml"
    file.write_text(MINE)
    (machine,) = find_machines(str(file))
    assert (machine.label, machine.memory_bytes, machine.devices) == ("my machine", 64 << 30, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "machines.toml: "),
        ("", "no machine in it"),
        ("x = 1", "machine x: 1; expected a table of figures"),
        (MINE + "bandwith = 3\n", "unknown key 'bandwith'; did you mean 'bandwidth_gb_s'?"),
        (MINE.replace("memory_gib = 64\n", ""), "machine mine: memory_gib missing"),
        (MINE.replace("= 64", "= -1"), "memory_gib is -1; expected a number of zero or more"),
        (MINE.replace("= 64", "= true"), "memory_gib is True"),
        (MINE.replace("= 64", "= 0"), "must be above zero"),
        (MINE.replace("bf16 = 2", "fp16 = 2"), "rates by type, with bf16 or float32"),
        (MINE.replace("bf16 = 2", "bf16 = 2, fp6 = 1"), "tflops names 'fp6'"),
        (MINE.replace("bf16 = 2", "bf16 = 0"), "tflops.bf16 is 0"),
        (MINE + "devices = 0\n", "expected a whole number of at least 1"),
        (MINE + "kind = 'tpu'\n", "expected 'gpu' or 'cpu'"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "machines.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        find_machines(str(file))


@pytest.mark.parametrize(("name", "hint"), [("h20O", "did you mean 'h20'?"), ("h200x0", "h200x8"), ("", "give one of")])
def test_an_unknown_machine(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(hint)):
        find_machines(name)
