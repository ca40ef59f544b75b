"""Mathematics on tensors; knows no configuration and no model.

Every operation has a reference (float32, reads like the formula) and faster implementations with the same contract.
Callers take the operation from here; `registry` says how an implementation is chosen, `operations` which there are.
"""

from indexshare.ops.indexer.kl_rows import KLRows, Teacher
from indexshare.ops.operations import (
    apply_rope,
    causal_attention,
    dense_attention,
    encode_rows,
    experts,
    indexer_kl,
    indexer_kl_mean,
    layer_norm,
    linear_cross_entropy,
    linear_overlap,
    rms_norm,
    rope_tables,
    route,
    select_topk,
    sparse_grouped,
    sparse_mla,
    swiglu,
    wide_linear,
)
from indexshare.ops.registry import Backend, Implementation, Operation, Status, explain, force, forced

__all__ = [
    "Backend",
    "Implementation",
    "KLRows",
    "Operation",
    "Status",
    "Teacher",
    "apply_rope",
    "causal_attention",
    "dense_attention",
    "encode_rows",
    "experts",
    "explain",
    "force",
    "forced",
    "indexer_kl",
    "indexer_kl_mean",
    "layer_norm",
    "linear_cross_entropy",
    "linear_overlap",
    "rms_norm",
    "rope_tables",
    "route",
    "select_topk",
    "sparse_grouped",
    "sparse_mla",
    "swiglu",
    "wide_linear",
]
