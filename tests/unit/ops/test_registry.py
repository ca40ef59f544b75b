"""The registry: a made-up backend is a function and a registration; forcing holds in all threads; loading waits."""

import ast
import importlib
import inspect
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from indexshare import ops
from indexshare.ops import registry
from indexshare.ops.native import native
from indexshare.ops.registry import Backend, Implementation, Operation, Status

MADE_UP = Backend(
    name="made-up", title="made-up kernels", devices=frozenset({"cpu"}), status=lambda: Status(True, "made up")
)


def fives(gate: Tensor, up: Tensor) -> Tensor:
    """An implementation that is easily told from others."""
    return torch.full_like(gate, 5.0)


def odd_rows(gate: Tensor, up: Tensor) -> str | None:
    """Why `fives` cannot take a call."""
    return "an odd number of rows" if gate.shape[0] % 2 else None


EVEN, ODD = (torch.randn(2, 3), torch.randn(2, 3)), (torch.randn(3, 3), torch.randn(3, 3))


@pytest.fixture
def made_up() -> Iterator[None]:
    ops.swiglu.register(Implementation(MADE_UP, fives, odd_rows), before="torch")
    yield
    ops.swiglu.remove("made-up")


@pytest.mark.usefixtures("made_up")
def test_a_made_up_backend_answers_when_forced_and_refuses_with_its_reason() -> None:
    with ops.force("made-up"):
        assert (ops.swiglu(*EVEN) == 5).all()
        with pytest.raises(ValueError, match="forced to the made-up kernels, which cannot take this call: an odd num"):
            ops.swiglu(*ODD)
        assert ops.swiglu.explain() == {"op": "swiglu", "implementation": "made-up", "reason": "forced"}
    assert not (ops.swiglu(*EVEN) == 5).any() or native().library is None


@pytest.mark.usefixtures("made_up")
def test_operations_without_the_forced_backend_choose_as_ever() -> None:
    """A kernel that refuses a call is not called because something else is forced: here, rows that want gradients."""
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4)
    with ops.force("made-up"):
        assert ops.wide_linear(x, weight).requires_grad and ops.rms_norm(x, weight[0], 1e-5).requires_grad


def test_by_preference_the_first_that_takes_a_call_answers() -> None:
    ops.swiglu.register(Implementation(MADE_UP, fives, odd_rows))
    try:
        assert (ops.swiglu(*EVEN) == 5).all() and (ops.swiglu(gate=EVEN[0], up=EVEN[1]) == 5).all()
        torch.testing.assert_close(ops.swiglu(*ODD), torch.nn.functional.silu(ODD[0]) * ODD[1])
        assert ops.swiglu.explain() == {"op": "swiglu", "implementation": "made-up", "reason": "made up"}
        with pytest.raises(ValueError, match="swiglu has an implementation called 'made-up' already"):
            ops.swiglu.register(Implementation(MADE_UP, fives))
    finally:
        ops.swiglu.remove("made-up")
    assert not (ops.swiglu(*EVEN) == 5).any()


def test_a_backend_for_another_device_is_not_even_imported() -> None:
    status = Status(False, "need a GPU")
    triton = Backend(name="triton", title="Triton kernels", devices=frozenset({"cuda"}), status=lambda: status)
    ops.swiglu.register(Implementation(triton, "no_such_module:swiglu", "no_such_module:unsupported"))
    try:
        assert not (ops.swiglu(*EVEN) == 5).any()
        assert ops.swiglu.explain()["implementation"] != "triton"
        assert ops.swiglu.explain("cuda")["reason"] == "Triton kernels need a GPU"
        with ops.force("triton"), pytest.raises(ValueError, match="it is on cpu, they serve cuda"):
            ops.swiglu(*EVEN)
    finally:
        ops.swiglu.remove("triton")


def test_modules_are_imported_when_a_call_considers_them() -> None:
    program = """
import sys, torch
from indexshare import ops
def loaded():
    ours = (n for n in sys.modules if n.startswith("indexshare.ops.") and "_impl" in n)
    return sorted(n.removeprefix("indexshare.ops.") for n in ours)
assert loaded() == [], loaded()
ops.layer_norm(torch.ones(1, 2), torch.ones(2), torch.ones(2), 1e-5)
assert loaded() == ["rows.torch_impl"], loaded()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.usefixtures("made_up")
def test_a_forced_choice_holds_in_threads() -> None:
    """In threads that began before, and in those that begin inside the block."""
    with ThreadPoolExecutor(2) as before:
        list(before.map(ops.swiglu, *zip(EVEN, EVEN, strict=True)))
        with ops.force("made-up"), ThreadPoolExecutor(2) as inside:
            for pool in (before, inside):
                assert (pool.submit(ops.swiglu, *EVEN).result() == 5).all()
        assert not (before.submit(ops.swiglu, *EVEN).result() == 5).all()


@pytest.mark.usefixtures("made_up")
def test_a_forced_choice_holds_in_the_workers_of_training() -> None:
    from indexshare.train.steps import Workers

    with ops.force("made-up"):
        results = list(Workers(2).map(lambda pair: ops.swiglu(*pair), [EVEN, EVEN, EVEN]))
    assert all((result == 5).all() for result in results)


@pytest.mark.usefixtures("made_up")
def test_blocks_inside_one_another_and_beside_one_another() -> None:
    with ops.force("reference"):
        with ops.force("made-up"):
            assert ops.forced() == ("reference", "made-up")
            assert (ops.swiglu(*EVEN) == 5).all()
            assert ops.rms_norm.explain()["implementation"] == "reference", "it has nothing made up"
        assert ops.swiglu.explain()["implementation"] == "reference"
    assert ops.forced() == ()

    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with ops.force("torch"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with ops.force("made-up"):
        thread.start()
        entered.wait(10)
        assert ops.forced() == ("made-up", "torch")
    assert ops.forced() == ("torch",), "each block ends its own choice"
    leave.set()
    thread.join()
    assert ops.forced() == ()


def test_unknown_names_are_refused() -> None:
    known = r"\['cpu', 'reference', 'torch'\]"
    with pytest.raises(ValueError, match=f"no implementation is called 'cdu'; there are {known}"), ops.force("cdu"):
        pass
    with pytest.raises(ValueError, match="swiglu has no implementation called 'triton'; it has cpu, torch, reference"):
        ops.swiglu.register(Implementation(MADE_UP, fives), before="triton")
    with pytest.raises(ValueError, match="there is already an operation called 'swiglu'"):
        Operation(ops.swiglu.__wrapped__, MADE_UP)


IMPLEMENTATIONS = [
    pytest.param(operation, implementation, id=f"{name}-{implementation.backend.name}")
    for name, operation in registry.operations().items()
    for implementation in operation.implementations
]


@pytest.mark.parametrize(("operation", "implementation"), IMPLEMENTATIONS)
def test_implementations_exist_and_take_what_the_reference_takes(
    operation: Operation, implementation: Implementation
) -> None:
    def shape(function: object) -> list[tuple[str, object, object]]:
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
        return [(p.name, p.kind, p.default) for p in parameters]

    assert shape(registry._resolve(implementation.function)) == shape(operation.__wrapped__)
    assert operation.implementations[-1].backend.name == "reference"
    if implementation.refuses is not None:
        parameters = inspect.signature(operation.__wrapped__).parameters.values()
        given = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
        places = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
        inspect.signature(registry._resolve(implementation.refuses)).bind(*places, **given)  # type: ignore[arg-type]


def test_implementations_import_neither_the_registry_nor_each_other() -> None:
    root = Path(importlib.import_module("indexshare").__file__ or "").parent.parent
    functions = [each.values[1].function for each in IMPLEMENTATIONS]
    implementations = {f.partition(":")[0] if isinstance(f, str) else f.__module__ for f in functions}
    forbidden = implementations | {"indexshare.ops", "indexshare.ops.registry", "indexshare.ops.operations"}
    wrong = []
    for name in implementations:
        tree = ast.parse((root / name.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                named = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            wrong += [(name, other) for other in named if other in forbidden - {name}]
    assert len(implementations) > 10
    assert wrong == []
