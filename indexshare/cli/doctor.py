"""`indexshare doctor`: what this machine can run, and what is missing."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from cyclopts import Parameter

from indexshare import __version__
from indexshare.cli.output import console, print_json, print_pairs, size
from indexshare.config.shipped import shipped_models
from indexshare.planner import machine
from indexshare.text.files import plural

REQUIRED = {
    "torch": "tensors",
    "safetensors": "weights",
    "tokenizers": "text to tokens",
    "numpy": "training data",
    "jinja2": "chat templates",
    "rich": "tables in the terminal",
    "cyclopts": "this command",
}
OPTIONAL = {
    "matplotlib": "plots (pip install 'indexshare[plots]')",
    "tensorboard": "training curves in TensorBoard (pip install 'indexshare[tensorboard]')",
    "transformers": "comparison with the public implementation, in tests and benchmarks only",
}


def doctor(*, json: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Say what this machine can run and what is missing. Exit code 1 if something needed is missing.

    Parameters
    ----------
    json
        Print one JSON object instead of tables.
    """
    report = examine()
    if json:
        print_json(report)
    else:
        _show(report)
    return 0 if report["ready"] else 1


def examine() -> dict[str, Any]:
    """Everything that `doctor` reports, as plain values. Loads each shipped model once."""
    packages = {name: _version(name) for name in (*REQUIRED, *OPTIONAL)}
    torch_facts = _torch() if packages["torch"] else {"error": "not installed"}
    models = {} if "error" in torch_facts else {name: _try_model(name) for name in shipped_models()}
    missing = [name for name in REQUIRED if packages[name] is None]
    broken = [name for name, facts in models.items() if "error" in facts]
    return {
        "ready": not missing and not broken and "error" not in torch_facts,
        "indexshare": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": machine.cpu_name(),
        "cpu_features": machine.cpu_features(),
        "cores": machine.usable_cores(),
        "memory_total": machine.total_memory_bytes(),
        "memory_available": torch_facts.pop("memory_available", None),
        "compiler": machine.compiler(),
        "torch": torch_facts,
        "packages": packages,
        "missing": missing,
        "operations": [] if "error" in torch_facts else _operations(),
        "models": models,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torch() -> dict[str, Any]:
    try:
        import torch

        from indexshare.engine.capacity import free_memory
    except (ImportError, OSError) as error:  # OSError: a shared library of torch does not load
        return {"error": f"does not import: {error}"}
    facts: dict[str, Any] = {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": None,
        "memory_available": free_memory(torch.device("cpu")),
    }
    if torch.cuda.is_available():
        facts["cuda"] = {
            "version": torch.version.cuda,
            "devices": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        }
    return facts


def _operations() -> list[dict[str, str]]:
    from indexshare import ops
    from indexshare.step import native_step

    return [*ops.explain(), native_step.explain()]


def _try_model(name: str) -> dict[str, Any]:
    from indexshare.checkpoint.load import load_model

    try:
        model = load_model(name)
    except (ValueError, OSError) as error:
        return {"error": str(error)}
    dtype = str(model.lm_head.weight.dtype).removeprefix("torch.")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "dtype": dtype, "context": model.config.max_position_embeddings}


def _show(report: dict[str, Any]) -> None:
    out, torch = console(), report["torch"]
    features = report["cpu_features"]
    has = ", ".join(name for name, present in features.items() if present) or "none of those we look for"
    lacks = ", ".join(name for name, present in features.items() if not present)
    memory = "unknown"
    if report["memory_total"] is not None and report["memory_available"] is not None:
        memory = f"{size(report['memory_available'])} free of {size(report['memory_total'])}"
    print_pairs(
        "Machine",
        [
            ("indexshare", report["indexshare"]),
            ("Python", f"{report['python']} on {report['system']}"),
            ("processor", f"{report['cpu']}, {plural(report['cores'], 'core')} usable"),
            ("instructions", f"{has} (not: {lacks})" if lacks else has if features else "not known"),
            ("memory", memory),
            ("C++ compiler", report["compiler"] or _without_compiler(report["operations"])),
            ("torch", _torch_line(torch)),
            ("CUDA", _cuda_line(torch)),
        ],
        to=out,
    )
    out.print()
    packages = report["packages"]
    rows = [(name, f"{packages[name] or 'MISSING'}: {use}") for name, use in REQUIRED.items()]
    rows += [(name, f"{packages[name] or 'absent, optional'}: {use}") for name, use in OPTIONAL.items()]
    print_pairs("Packages", rows, to=out)
    out.print()
    operations = [(row["op"], f"{row['implementation']}: {row['reason']}") for row in report["operations"]]
    print_pairs("Operations", operations or [("none", "torch is needed first")], to=out)
    out.print()
    models = [(name, _model_line(facts)) for name, facts in report["models"].items()]
    print_pairs("Shipped models", models or [("none", "give a model directory to --model")], to=out)
    out.print()
    out.print("Ready." if report["ready"] else "Not ready: " + _what_is_wrong(report))


def _without_compiler(operations: list[dict[str, str]]) -> str:
    if any(row["implementation"] == "cpu" for row in operations):
        return "none; the C++ kernels in use were compiled before"
    return "none: the torch implementations run"


def _torch_line(torch: dict[str, Any]) -> str:
    if "error" in torch:
        return torch["error"]
    return f"{torch['version']}, {plural(torch['threads'], 'thread')}, {torch['cpu_capability']} code on the CPU"


def _cuda_line(torch: dict[str, Any]) -> str:
    cuda = torch.get("cuda")
    return f"{cuda['version']}: {', '.join(cuda['devices'])}" if cuda else "none"


def _model_line(facts: dict[str, Any]) -> str:
    if "error" in facts:
        return f"does not load: {facts['error']}"
    return f"loads: {facts['parameters']:,} parameters, {facts['dtype']}, context {facts['context']:,}"


def _what_is_wrong(report: dict[str, Any]) -> str:
    wrong = [f"install {name}" for name in report["missing"]]
    if "error" in report["torch"] and "torch" not in report["missing"]:
        wrong.append("repair torch")
    return "; ".join(wrong + [f"model {n} does not load" for n, f in report["models"].items() if "error" in f])
