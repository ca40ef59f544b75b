"""Logits of a text under llama.cpp (the package llama-cpp-python).

    python llama_cpp_worker.py MODEL.gguf REQUEST.json RESULT.pt

`REQUEST.json`: {"token_ids": [...]}. `RESULT.pt`: a dictionary of tensors. A failure is one line on standard error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(file: str, request_file: str, result_file: str) -> None:
    """Load, run, save."""
    import llama_cpp
    import torch

    ids = json.loads(Path(request_file).read_text(encoding="utf-8"))["token_ids"]
    llama = llama_cpp.Llama(file, n_ctx=len(ids) + 8, n_batch=len(ids), logits_all=True, verbose=False)
    llama.eval(ids)
    torch.save({"logits": torch.tensor(llama.scores[: len(ids)]).float()}, result_file)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as failure:
        sys.exit(f"{type(failure).__name__}: {' '.join(str(failure).split())[:500]}")
