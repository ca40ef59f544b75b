"""A pattern in every public spelling, and a checkpoint that has only the indexers that it needs."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from indexshare.checkpoint.load import load_model
from indexshare.checkpoint.save import save_model
from indexshare.config.share_plan import SharePlan


def spellings(plan: SharePlan) -> dict[str, Any]:
    """The plan as configuration keys and as arguments of servers.

    `indexer_types` and `index_topk_pattern` as in `config.json`; `index_topk_freq` and `index_skip_topk_offset` where
    the plan is of that schedule; `vllm` and `sglang` as arguments of their commands, for a checkpoint in which every
    layer has an indexer.
    """
    found: dict[str, Any] = {"indexer_types": list(plan.types), "index_topk_pattern": plan.pattern}
    found |= _schedule(plan)
    pattern = {"index_topk_pattern": plan.pattern}
    found["vllm"] = f"--hf-overrides '{json.dumps({'use_index_cache': True} | pattern)}'"
    found["sglang"] = f"--json-model-override-args '{json.dumps(pattern)}'"
    return found


def _schedule(plan: SharePlan) -> dict[str, int]:
    """Frequency and offset, if the plan has them: the offset is the number of Full layers that it begins with."""
    offset = next((layer for layer in plan.shared_layers), plan.num_layers)
    for every in range(1, plan.num_layers + 1):
        if SharePlan.uniform(plan.num_layers, every, offset) == plan:
            return {"index_topk_freq": every, "index_skip_topk_offset": offset}
    return {}


def write_checkpoint(source: Path, plan: SharePlan, out: Path, *, record: dict[str, Any]) -> None:
    """Write the model of a directory under a plan, without the indexers that this leaves idle.

    What the model was trained on (`training.json`) goes with it; `sharing.json` says how the plan was found.

    Args:
        source: model directory; its files keep their type.
        plan: whose Full layers have indexers there.
        out: created with its parents.
        record: plain values for `sharing.json`.
    """
    with warnings.catch_warnings():  # left out as was asked for
        warnings.filterwarnings("ignore", message=".*indexer tensors of Shared layers")
        model = load_model(source, config_overrides={"indexer_types": plan.types})
    save_model(model, out)
    if (source / "training.json").is_file():
        shutil.copyfile(source / "training.json", out / "training.json")
    (out / "sharing.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
