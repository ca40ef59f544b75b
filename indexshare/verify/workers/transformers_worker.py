"""Logits and hidden states of a text under transformers.

    python transformers_worker.py MODEL_DIR REQUEST.json RESULT.pt

`REQUEST.json`: {"token_ids": [...], "index_topk": 8 or null, "dtype": "float32"}. `RESULT.pt`: a dictionary of tensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(directory: str, request_file: str, result_file: str) -> None:
    """Load, run, save."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    config = AutoConfig.from_pretrained(directory)
    if request["index_topk"] is not None:
        config.index_topk = request["index_topk"]
    dtype = getattr(torch, request["dtype"])
    model = AutoModelForCausalLM.from_pretrained(directory, config=config, dtype=dtype).eval()
    with torch.no_grad():
        result = model(torch.tensor([request["token_ids"]]), output_hidden_states=True, use_cache=False)
    # The last entry is after the final norm; the state after the last layer itself is not shown.
    hidden = [state[0].float() for state in result.hidden_states[1:-1]]
    torch.save({"logits": result.logits[0].float(), "hidden": hidden}, result_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
