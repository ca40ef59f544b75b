"""What answers for an operation: implementations in order of preference, each loaded when it is first considered.

An operation is built from its reference, whose signature and docstring are the contract. A call goes to the first
implementation that serves its device and does not refuse it; the reference refuses nothing and comes last.

A forced choice belongs to the process and not to the thread that forces it. Operations also run in threads that the
forcing code did not start (pools of workers, autograd's threads on a GPU), and a choice that some of them miss compares
an implementation with itself without a sign. So forcing concerns everybody: it is for tests, comparisons and
measurements.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import update_wrapper
from importlib import import_module
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Status(NamedTuple):
    """Whether a backend runs on this machine, and a sentence about it for people."""

    usable: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A family of implementations that run, or do not run, for the same reason.

    Attributes:
        name: what `force` takes.
        title: what its implementations are called in a sentence, in the plural.
        devices: types of device that it serves (`"cpu"`, `"cuda"`); all if empty.
        status: asked for explanations only; a call asks its implementation.
    """

    name: str
    title: str
    devices: frozenset[str] = frozenset()
    status: Callable[[], Status]

    def serves(self, device: str) -> bool:
        """Whether it has anything for this type of device."""
        return not self.devices or device in self.devices


@dataclass(frozen=True)
class Implementation:
    """One answer to an operation.

    Attributes:
        backend: what it belongs to.
        function: takes the operation's arguments. Given as `"module:name"`, its module is imported when a call first
            considers it.
        refuses: takes the same arguments and says why `function` cannot take them, or None; also by name. Without it
            every call on the backend's devices is taken.
    """

    backend: Backend
    function: Callable[..., Any] | str
    refuses: Callable[..., str | None] | str | None = None


class _Loaded(NamedTuple):
    refuses: Callable[..., str | None] | None
    function: Callable[..., Any]


_lock = threading.RLock()
_operations: dict[str, Operation[..., Any]] = {}
_entries: dict[object, str] = {}  # one for each `force` that has begun and not ended, in that order
_forced: tuple[str, ...] = ()  # their names: what calls read


class Operation(Generic[P, R]):
    """An operation of the model, called like its reference.

    Args:
        reference: the formula; the last implementation. Its name is the operation's.
        backend: the reference's.
        implementations: the others, the preferred one first.
        tensor: place of the argument that says on which device a call is.

    Raises:
        ValueError: there is an operation of this name.
    """

    def __init__(
        self, reference: Callable[P, R], backend: Backend, *implementations: Implementation, tensor: int = 0
    ) -> None:
        self.name = reference.__name__
        if self.name in _operations:
            raise ValueError(f"there is already an operation called {self.name!r}; rename the reference")
        update_wrapper(self, reference)
        self._place, self._parameter = tensor, list(inspect.signature(reference).parameters)[tensor]
        self._set((*implementations, Implementation(backend, reference)))
        _operations[self.name] = self

    @property
    def implementations(self) -> tuple[Implementation, ...]:
        """In order of preference."""
        return self._implementations

    def _set(self, implementations: tuple[Implementation, ...]) -> None:
        self._implementations = implementations
        self._cpu: list[_Loaded] = []
        self._loaded = {"cpu": self._cpu}  # by type of device, those that a call has considered

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The answer of the first implementation that takes the call."""
        if not _forced and len(args) > self._place and args[self._place].is_cpu:  # type: ignore[attr-defined]
            for refuses, function in self._cpu:
                if refuses is None or refuses(*args, **kwargs) is None:
                    return function(*args, **kwargs)
        return self._choose(args, kwargs)(*args, **kwargs)

    def _choose(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        """The function that takes the call, by force or by preference."""
        device: str = (args[self._place] if len(args) > self._place else kwargs[self._parameter]).device.type
        for name in reversed(_forced):
            for implementation in self._implementations:
                if implementation.backend.name == name:
                    return self._by_force(implementation, device, args, kwargs)
        for refuses, function in self._considered(device):
            if refuses is None or refuses(*args, **kwargs) is None:
                return function
        raise ValueError(f"no implementation of {self.name} takes this call on {device}")

    def _by_force(
        self, implementation: Implementation, device: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[..., Any]:
        backend, refusal = implementation.backend, None
        if not backend.serves(device):
            refusal = f"it is on {device}, they serve {', '.join(sorted(backend.devices))}"
        else:
            refuses, function = _load(implementation)
            refusal = None if refuses is None else refuses(*args, **kwargs)
        if refusal is not None:
            raise ValueError(f"{self.name} is forced to the {backend.title}, which cannot take this call: {refusal}")
        return function

    def _considered(self, device: str) -> Iterator[_Loaded]:
        """Implementations for a type of device, loaded one after the other."""
        with _lock:
            loaded = self._loaded.setdefault(device, [])
            candidates = [i for i in self._implementations if i.backend.serves(device)]
        for number, implementation in enumerate(candidates):
            with _lock:
                if number == len(loaded):
                    loaded.append(_load(implementation))
            yield loaded[number]

    def register(self, implementation: Implementation, *, before: str | None = None) -> None:
        """Add an implementation: before that of the backend called `before`, or in front of all.

        Raises:
            ValueError: its backend has one already, or `before` has none.
        """
        names = [i.backend.name for i in self._implementations]
        if implementation.backend.name in names:
            name = implementation.backend.name
            raise ValueError(f"{self.name} has an implementation called {name!r} already; remove it first")
        if before is not None and before not in names:
            raise ValueError(f"{self.name} has no implementation called {before!r}; it has {', '.join(names)}")
        place = 0 if before is None else names.index(before)
        with _lock:
            self._set((*self._implementations[:place], implementation, *self._implementations[place:]))

    def remove(self, name: str) -> None:
        """Take out the implementation of a backend, if there is one."""
        with _lock:
            self._set(tuple(i for i in self._implementations if i.backend.name != name))

    def explain(self, device: str = "cpu") -> dict[str, str]:
        """The operation, the implementation that calls on a type of device use, and why."""
        names = [i.backend.name for i in self._implementations]
        for name in reversed(_forced):
            if name in names:
                return {"op": self.name, "implementation": name, "reason": "forced"}
        refusals: list[str] = []
        for backend in (i.backend for i in self._implementations if i.backend.serves(device)):
            usable, reason = backend.status()
            if usable:
                return {"op": self.name, "implementation": backend.name, "reason": "; ".join(refusals) or reason}
            refusals.append(f"{backend.title} {reason}")
        return {"op": self.name, "implementation": "none", "reason": "; ".join(refusals)}


def _load(implementation: Implementation) -> _Loaded:
    return _Loaded(_resolve(implementation.refuses), _resolve(implementation.function))


def _resolve(function: Any) -> Any:
    """A function given by itself or as `"module:name"`."""
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    return getattr(import_module(module), name)


def operations() -> dict[str, Operation[..., Any]]:
    """All operations by name."""
    return dict(_operations)


def explain(device: str = "cpu") -> list[dict[str, str]]:
    """One row for each operation: `op`, the `implementation` that calls on a type of device use, and the `reason`."""
    return [operation.explain(device) for operation in _operations.values()]


def forced() -> tuple[str, ...]:
    """Names of backends that are in force, the latest last."""
    return _forced


@contextmanager
def force(name: str) -> Iterator[None]:
    """Within the block, and in all threads, operations that have an implementation of that backend use it.

    Operations without one choose as ever; of blocks inside one another, or in several threads, the latest counts.
    A forced implementation that refuses a call raises `ValueError`.

    Args:
        name: `"cpu"` (the C++ kernels), `"torch"`, `"reference"`, or a backend that was registered.

    Raises:
        ValueError: no operation has an implementation of that name.
    """
    known = {i.backend.name for operation in _operations.values() for i in operation.implementations}
    if name not in known:
        raise ValueError(f"no implementation is called {name!r}; there are {sorted(known)}")
    entry = object()
    _change(lambda: _entries.__setitem__(entry, name))
    try:
        yield
    finally:
        _change(lambda: _entries.__delitem__(entry))


def _change(act: Callable[[], None]) -> None:
    global _forced
    with _lock:
        act()
        _forced = tuple(_entries.values())
