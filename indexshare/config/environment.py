"""The environment variables that indexshare reads: all of them, in one function, parsed strictly.

`docs/environment.md` lists them. A variable with our prefix that is not known, or a value that is not one of
those listed, is an error: a setting that is ignored in silence is worse than one refused.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PREFIX = "INDEXSHARE_"
_SWITCH = {"": False, "0": False, "1": True}
_NAMES = ("INDEXSHARE_CPU_LEVEL", "INDEXSHARE_DEBUG")
CPU_LEVELS = ("amx", "avx512bf16", "avx512", "avx2", "base")  # names in ops/native.py, which knows no configuration


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What the environment asks for.

    Attributes:
        cpu_level: best instructions that the C++ kernels may use, empty for the best there are
            (`INDEXSHARE_CPU_LEVEL=avx512bf16`).
        debug: show the traceback of a user's error as well as its one line (`INDEXSHARE_DEBUG=1`).
    """

    cpu_level: str = ""
    debug: bool = False


def read_environment(variables: Mapping[str, str] | None = None) -> Environment:
    """Parse the variables that start with `INDEXSHARE_` (from the process unless given).

    Raises:
        ValueError: an unknown name, with the nearest known one, or a value that is not one of those listed.
    """
    variables = os.environ if variables is None else variables
    for name in sorted(variables):
        if name.startswith(PREFIX) and name not in _NAMES:
            near = difflib.get_close_matches(name, _NAMES, n=1, cutoff=0.8)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(_NAMES)}"
            raise ValueError(f"unknown environment variable {name}{hint}")
    return Environment(
        cpu_level=_choice("INDEXSHARE_CPU_LEVEL", CPU_LEVELS, variables), debug=_switch("INDEXSHARE_DEBUG", variables)
    )


def read_secret(name: str, option: str) -> str:
    """The value of a variable that a user has named, such as the key of a server.

    Raises:
        ValueError: it is not set, or empty.
    """
    value = os.environ.get(name, "").strip()
    if not value:
        raise ValueError(
            f"{option} names the environment variable {name!r}, which is not set; set it to the key itself"
        )
    return value


def prefix_directory(variables: Mapping[str, str] | None = None) -> Path:
    """Where the command keeps blocks of prompts: `indexshare/prefixes` in the user's cache folder.

    That folder is `XDG_CACHE_HOME` where it is an absolute path, as its specification wants, else `~/.cache`.
    """
    return _cache_folder(variables) / "prefixes"


def gguf_directory(variables: Mapping[str, str] | None = None) -> Path:
    """Where descriptions of models in GGUF files are kept: `indexshare/gguf` in the same folder."""
    return _cache_folder(variables) / "gguf"


def _cache_folder(variables: Mapping[str, str] | None) -> Path:
    home = (os.environ if variables is None else variables).get("XDG_CACHE_HOME", "")
    base = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return base / "indexshare"


def let_waiting_threads_sleep() -> None:
    """Have OpenMP's threads sleep after about a millisecond of waiting, not after a hundred, unless the user said how.

    One that waits on its core where another program has work loses its turn, and has none when there is something to
    do. To be called before torch is imported: GNU OpenMP, which torch brings on Linux, reads it when it loads.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "20000"


def ignore_useless_columns() -> None:
    """Forget `COLUMNS=0`, which some editors and schedulers set where they know no width: it would be taken for one."""
    if os.environ.get("COLUMNS", "").strip("0") == "":
        os.environ.pop("COLUMNS", None)


def _switch(name: str, variables: Mapping[str, str]) -> bool:
    value = variables.get(name, "")
    if value not in _SWITCH:
        raise ValueError(f"{name} is {value!r}; expected 1 (on), or 0 or nothing (off)")
    return _SWITCH[value]


def _choice(name: str, choices: tuple[str, ...], variables: Mapping[str, str]) -> str:
    value = variables.get(name, "")
    if value and value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}, or nothing")
    return value
