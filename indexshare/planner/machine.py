"""Facts about the machine this process runs on; every one is optional, none needs a package."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

_CPU_FEATURES = {
    "avx2": ("avx2",),
    "avx512": ("avx512f", "avx512bw", "avx512vl"),
    "avx512_bf16": ("avx512_bf16",),
    "amx": ("amx_tile", "amx_bf16"),
    "neon": ("asimd",),
}


def cpu_name(cpuinfo: str | None = None) -> str:
    """Model name of the processor, else its architecture."""
    for line in (_cpuinfo() if cpuinfo is None else cpuinfo).splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or "unknown"


def cpu_features(cpuinfo: str | None = None) -> dict[str, bool]:
    """Which vector and matrix instructions the processor has; empty where the system does not say."""
    flags: set[str] = set()
    for line in (_cpuinfo() if cpuinfo is None else cpuinfo).splitlines():
        if line.startswith(("flags", "Features")):
            flags.update(line.split(":", 1)[1].split())
    return {name: set(needed) <= flags for name, needed in _CPU_FEATURES.items()} if flags else {}


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def total_memory_bytes() -> int | None:
    """Physical memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    # Not ru_maxrss where it can be helped: on Linux a child inherits the maximum of the process that started it.
    peak = _status_bytes("VmHWM")
    if peak is not None:
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory_bytes() -> int:
    """Resident memory of this process now; where the system does not say, its peak."""
    now = _status_bytes("VmRSS")
    return peak_memory_bytes() if now is None else now


def describe_machine() -> dict[str, Any]:
    """What figures were measured on: processor, its instructions, usable cores, memory, system, load at this moment."""
    return {
        "processor": cpu_name(),
        "features": [name for name, present in cpu_features().items() if present],
        "cores": usable_cores(),
        "memory_bytes": total_memory_bytes(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def compiler() -> str | None:
    """Path of a C++ compiler on the search path."""
    return next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _status_bytes(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)
