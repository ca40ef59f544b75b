"""Mathematics on tensors; knows no configuration and no model.

Every operation has a `reference` (float32, reads like the formula) and faster implementations with the same
contract. Callers take the operation from here; `dispatch` decides which implementation answers.
"""

from indexshare.ops.dispatch import apply_rope, experts, rms_norm, route, select_topk, sparse_mla, swiglu, wide_linear
from indexshare.ops.elementwise import layer_norm, rope_tables
from indexshare.ops.indexer.loss import KLRows, indexer_kl
from indexshare.ops.sparse_mla.causal import causal_attention
from indexshare.ops.sparse_mla.torch_impl import dense_attention

__all__ = [
    "KLRows",
    "apply_rope",
    "causal_attention",
    "dense_attention",
    "experts",
    "indexer_kl",
    "layer_norm",
    "rms_norm",
    "rope_tables",
    "route",
    "select_topk",
    "sparse_mla",
    "swiglu",
    "wide_linear",
]
