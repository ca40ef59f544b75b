"""Logits of a text under transformers, and what every layer makes of what enters it.

    python transformers_worker.py MODEL_DIR REQUEST.json RESULT.pt

`REQUEST.json`: {"token_ids": [...], "index_topk": 8 or null, "dtype": "float32"}. `RESULT.pt`: a dictionary of tensors:
`logits` `[S, V]`; states `before`, `between` and `after` the halves of each layer, `[L, S, H]`; `chosen` tokens
`[L, S, k]`. A failure is one line on standard error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


class Watch:
    """Keeps what passes through the layers of a model while it runs."""

    def __init__(self, layers: Any) -> None:
        self.seen: dict[str, list[Any]] = {"before": [], "between": [], "after": [], "chosen": []}
        for layer in layers:
            layer.register_forward_pre_hook(self._enters("before"), with_kwargs=True)
            layer.post_attention_layernorm.register_forward_pre_hook(self._enters("between"), with_kwargs=True)
            layer.self_attn.register_forward_hook(self._chooses)
            layer.register_forward_hook(self._leaves)

    def _enters(self, name: str) -> Any:
        def hook(module: Any, positional: Any, named: Any) -> None:
            state = positional[0] if positional else named["hidden_states"]
            self.seen[name].append(state[0].float().clone())

        return hook

    def _leaves(self, module: Any, positional: Any, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) else output
        self.seen["after"].append(state[0].float().clone())

    def _chooses(self, module: Any, positional: Any, output: Any) -> None:
        if isinstance(output, tuple) and len(output) > 2 and output[2] is not None:
            self.seen["chosen"].append(output[2][0].clone())

    def tensors(self) -> dict[str, Any]:
        """All of it, stacked; nothing where the layers do not show their choices."""
        import torch

        if len(self.seen["chosen"]) != len(self.seen["after"]):
            return {}
        return {name: torch.stack(values) for name, values in self.seen.items()}


def main(directory: str, request_file: str, result_file: str) -> None:
    """Load, run, save.

    Raises:
        ValueError: transformers does not fill all weights, or refuses the model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    config = AutoConfig.from_pretrained(directory)
    if request["index_topk"] is not None:
        config.index_topk = request["index_topk"]
    dtype = getattr(torch, request["dtype"])
    load: Any = AutoModelForCausalLM.from_pretrained
    model, report = load(directory, config=config, dtype=dtype, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"it finds no values for {len(missing)} tensors, {missing[0]} for one, and would invent them")
    watch = Watch(model.eval().model.layers)
    with torch.no_grad():
        result = model(torch.tensor([request["token_ids"]]), use_cache=False)
    torch.save({"logits": result.logits[0].float()} | watch.tensors(), result_file)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as failure:
        sys.exit(f"{type(failure).__name__}: {' '.join(str(failure).split())[:500]}")
