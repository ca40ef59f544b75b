"""`indexshare eval`: bits per byte of a model on text it was not trained on."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from indexshare.cli.output import console, print_json, print_pairs, print_table

if TYPE_CHECKING:
    from indexshare.eval.held_out import HeldOutReport


def evaluate(
    model: str,
    /,
    *,
    text: Path | None = None,
    max_tokens: int = 8192,
    dtype: str | None = None,
    device: str = "cpu",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Score a model on held-out files: bits per byte against xz, against full attention, and by position.

    Parameters
    ----------
    model
        Name of a shipped model, or a model directory.
    text
        Score every *.py file of this folder. By default the model's own held-out files: the text named in its
        training.json, split again by the same rule.
    max_tokens
        Longest context; longer files are scored in stretches of it.
    dtype
        float32 or bfloat16; unless given, float32 on a CPU, else as stored.
    device
        Where to run: cpu, cuda, cuda:1, ...
    json
        Print one JSON object instead of tables.
    """
    from indexshare.cli.completion import check_device
    from indexshare.config.shipped import model_directory
    from indexshare.engine.llm import running_dtype
    from indexshare.eval.held_out import evaluate_held_out, held_out_documents
    from indexshare.model.weights import load_model
    from indexshare.tokenizer import Tokenizer
    from indexshare.train.corpus import TextFolder, read_folder

    check_device(device)
    directory = model_directory(model)
    if text is not None:
        documents = read_folder(TextFolder(path=str(text)))
    else:
        documents = held_out_documents(_training_text(directory))
    err = console(stderr=True)
    with err.status("scoring") as status:
        report = evaluate_held_out(
            load_model(model, dtype=running_dtype(dtype, device), device=device),
            Tokenizer.load(directory),
            documents,
            max_tokens=max_tokens,
            progress=lambda done, total: status.update(f"scoring file {done + 1} of {total}"),
        )
    facts: dict[str, Any] = {"model": model, **asdict(report)}
    facts |= {"below_xz": report.below_xz, "price_of_sparsity": report.price_of_sparsity}
    if json:
        print_json(facts)
        return
    _show(model, report)


def _show(model: str, report: HeldOutReport) -> None:
    out = console()
    print_pairs(
        f"{model} on {report.files} files, {report.num_bytes:,} bytes",
        [
            ("bits per byte", f"{report.sparse:.4f}"),
            ("  full attention", f"{report.full:.4f} (the selection costs {report.price_of_sparsity:+.2%})"),
            ("  xz -9e", f"{report.xz:.4f} (the model is {report.below_xz:.1%} below)"),
        ],
        to=out,
    )
    edges = report.position_edges
    rows = [
        (f"{low:,}-{high:,}", f"{bits:.4f}")
        for low, high, bits in zip(edges, edges[1:], report.position_bits, strict=False)
    ]
    if rows:
        print_table(f"bits per token by position, {report.windows} windows", ("position", "bits"), rows, to=out)


def _training_text(directory: Path) -> dict[str, Any]:
    file = directory / "training.json"
    try:
        return dict(json_module.loads(file.read_text(encoding="utf-8"))["text"])
    except (FileNotFoundError, KeyError, json_module.JSONDecodeError):
        raise ValueError(f"{file} does not say what the model was trained on; give a folder with --text") from None
