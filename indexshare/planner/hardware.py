"""Machines by name: memory, bandwidth and rates of products, from a table that ships with the package or from a file.

`hardware.toml` beside this file explains the keys. A name may ask for several devices: `rtx-4090x4`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("hardware.toml")
TYPES = ("float32", "bf16", "fp8", "int8", "fp4")
# What a product runs as where the machine has no rate for its type, the nearest first.
_WIDER = {
    "fp4": ("fp4", "fp8", "int8", "bf16", "float32"),
    "int8": ("int8", "fp8", "bf16", "float32"),
    "fp8": ("fp8", "int8", "bf16", "float32"),
    "bf16": ("bf16", "float32"),
    "float32": ("float32", "bf16"),
}
# The pieces of the matrix of hardware against context: single machines, pairs and fours of cards, eight of a server's.
USUAL = (
    "laptop-avx2", "laptop-avx512", "rtx-3090", "rtx-3090x2", "rtx-3090x4", "rtx-4090", "rtx-4090x2", "rtx-4090x4",
    "rtx-5090", "rtx-5090x2", "rtx-5090x4", "mac-studio-192", "mac-studio-512", "h100", "h100x8", "h200", "h200x8",
    "b200", "b200x8",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Limits of one machine; of its devices where it has several.

    Attributes:
        name, label: as asked for, and for people.
        kind: `"gpu"` or `"cpu"`.
        devices: number of devices that work together.
        memory_gib: of one device; `bandwidth_gb_s`, `tflops`: of one device, see `hardware.toml`.
        link_gb_s: between devices.
        host_memory_gib, host_bandwidth_gb_s, host_link_gb_s: memory beside the devices (none: zero).
        disk_gb_s: reading files.
        level: of this program's C++ kernels on a processor, where it is known: see `reached.toml`.
        source: where the figures are from.
    """

    name: str
    label: str
    memory_gib: float
    bandwidth_gb_s: float
    tflops: Mapping[str, float]
    kind: str = "gpu"
    devices: int = 1
    link_gb_s: float = 0.0
    host_memory_gib: float = 0.0
    host_bandwidth_gb_s: float = 0.0
    host_link_gb_s: float = 0.0
    disk_gb_s: float = 3.0
    level: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if field.type == "float" and (not number or not 0 <= value < float("inf")):
                raise ValueError(f"machine {self.name}: {field.name} is {value!r}; expected a number of zero or more")
            if field.type == "str" and not isinstance(value, str):
                raise ValueError(f"machine {self.name}: {field.name} is {value!r}; expected text")
        if type(self.devices) is not int or self.devices < 1:
            raise ValueError(f"machine {self.name}: devices is {self.devices!r}; expected a whole number of at least 1")
        if self.kind not in ("gpu", "cpu"):
            raise ValueError(f"machine {self.name}: kind is {self.kind!r}; expected 'gpu' or 'cpu'")
        if self.memory_gib <= 0 or self.bandwidth_gb_s <= 0:
            raise ValueError(f"machine {self.name}: memory_gib and bandwidth_gb_s must be above zero")
        self._check_rates()

    def _check_rates(self) -> None:
        if not isinstance(self.tflops, Mapping) or not {"bf16", "float32"} & set(self.tflops):
            raise ValueError(
                f"machine {self.name}: tflops is {self.tflops!r}; expected rates by type, with bf16 or float32"
            )
        for kind, rate in self.tflops.items():
            if kind not in TYPES:
                raise ValueError(f"machine {self.name}: tflops names {kind!r}; expected some of {', '.join(TYPES)}")
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf"):
                raise ValueError(f"machine {self.name}: tflops.{kind} is {rate!r}; expected a number above zero")

    @property
    def memory_bytes(self) -> int:
        """Of all devices together."""
        return int(self.memory_gib * self.devices * 2**30)

    @property
    def host_memory_bytes(self) -> int:
        """Beside the devices."""
        return int(self.host_memory_gib * 2**30)

    @property
    def bandwidth(self) -> float:
        """Bytes per second of all devices together."""
        return self.bandwidth_gb_s * 1e9 * self.devices

    @property
    def host_bandwidth(self) -> float:
        """Bytes per second at which the devices together can read the host's memory."""
        return min(self.host_bandwidth_gb_s, self.host_link_gb_s * self.devices) * 1e9

    def flops(self, kind: str) -> float:
        """Operations per second of products of type `kind`, all devices, at the next wider type's rate if need be."""
        rate = next(self.tflops[name] for name in _WIDER[kind] if name in self.tflops)
        return rate * 1e12 * self.devices

    def times(self, devices: int) -> Machine:
        """So many of these devices in one machine, with the host of one."""
        if devices == 1:
            return self
        return dataclasses.replace(
            self, name=f"{self.name}x{devices}", label=f"{devices} x {self.label}", devices=self.devices * devices
        )


def parse_machine(name: str, facts: Any) -> Machine:
    """A machine from a table of `hardware.toml`'s kind.

    Raises:
        ValueError: not a table, an unknown key (the nearest is named), a missing one, or a bad value.
    """
    if not isinstance(facts, dict):
        raise ValueError(f"machine {name}: {facts!r}; expected a table of figures")
    known = {field.name: field for field in dataclasses.fields(Machine) if field.name != "name"}
    for key in facts:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            raise ValueError(f"machine {name}: unknown key {key!r}{hint}")
    needed = [key for key, field in known.items() if field.default is dataclasses.MISSING and key != "label"]
    missing = [key for key in needed if key not in facts]
    if missing:
        raise ValueError(f"machine {name}: {', '.join(missing)} missing")
    given: dict[str, Any] = {"label": name} | facts
    return Machine(name=name, **given)


def read_machines(path: Path) -> dict[str, Machine]:
    """All machines of a file.

    Raises:
        ValueError: not TOML, no machine in it, or one that is not right; the text names the file.
        OSError: it cannot be read.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        machines = {name: parse_machine(name, facts) for name, facts in tables.items()}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not machines:
        raise ValueError(f"{path}: no machine in it; expected tables such as [my-machine], see planner/hardware.toml")
    return machines


@cache
def known_machines() -> dict[str, Machine]:
    """The table that comes with the package."""
    return read_machines(TABLE)


def find_machines(name: str) -> list[Machine]:
    """What a name stands for: a machine of the table, several of its devices (`h200x8`), or all machines of a file.

    Raises:
        ValueError: neither; the nearest name and all names are given.
    """
    machines = known_machines()
    if name in machines:
        return [machines[name]]
    several = re.fullmatch(r"(.+?)x(\d{1,4})", name)
    if several and several[1] in machines and int(several[2]):
        return [machines[several[1]].times(int(several[2]))]
    path = Path(name).expanduser()
    if path.is_file():
        return list(read_machines(path).values())
    near = difflib.get_close_matches(name.lower(), machines, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"no machine {name!r}{hint}; give one of {', '.join(machines)}, several of one as h200x8, or a file of machines"
    )
