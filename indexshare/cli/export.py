"""`indexshare export`: a checkpoint in the format of another program."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from indexshare.cli.output import console, note, print_json, print_pairs, size
from indexshare.text.files import plural


def export(
    model: str,
    /,
    *,
    gguf: Path,
    type: Literal["bf16", "q8_0"] = "bf16",
    tokenizer: Annotated[bool, Parameter(negative="--no-tokenizer")] = True,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write a model as a GGUF file, which llama.cpp runs. Needs the extra `gguf`.

    Parameters
    ----------
    model
        Name of a shipped model, or a model directory.
    gguf
        The file to write; one that is there is replaced when the new one is complete.
    type
        Weights in bfloat16, or in 8 bits with a scale for every 32. llama.cpp's own tools make smaller types.
    tokenizer
        Write the tokenizer too; a file without one takes token ids alone.
    json
        Print one JSON object instead of text.
    """
    from indexshare.export.gguf import export_gguf

    err = console(stderr=True)
    with err.status("checking") as status:
        report = export_gguf(
            model,
            gguf,
            type=type,
            tokenizer=tokenizer,
            progress=lambda done, total: status.update(f"writing {size(done)} of {size(total)}"),
        )
    if json:
        print_json({"model": model, "type": type, **asdict(report), "path": str(report.path)})
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.tensors.items())
    pairs = [
        ("size", f"{size(report.num_bytes)} ({report.num_bytes:,} bytes)"),
        ("architecture", report.architecture),
        ("tensors", f"{sum(report.tensors.values())}: {kinds}"),
        (
            "tokenizer",
            f"llama.cpp's pre-tokenizer {report.pre_tokenizer!r}"
            if report.pre_tokenizer
            else "none; the file takes token ids alone",
        ),
    ]
    if report.not_quantized:
        rest = f" and {len(report.not_quantized) - 3} more" if len(report.not_quantized) > 3 else ""
        pairs.append(("left in BF16", ", ".join(report.not_quantized[:3]) + rest + " (rows no multiple of 32)"))
    if report.dropped:
        name, reason = next(iter(report.dropped.items()))
        pairs.append(("left out", f"{plural(len(report.dropped), 'tensor')}, such as {name} ({reason})"))
    print_pairs(str(report.path), pairs, to=console())
    for text in report.notes:
        note(f"note: {text}")
