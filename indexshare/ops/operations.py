"""The operations of the model, and the backends that answer for them. Called from `indexshare.ops`.

A new backend is a `Backend` and an `Implementation` in each operation that it takes; nothing else changes. References
are imported here, everything else when a call first considers it.
"""

from __future__ import annotations

from indexshare.ops.coded import reference as coded
from indexshare.ops.dense_attention import reference as dense
from indexshare.ops.experts import reference as mixture
from indexshare.ops.indexer import reference as indexer
from indexshare.ops.loss import reference as loss
from indexshare.ops.native import native
from indexshare.ops.registry import Backend, Implementation, Operation, Status
from indexshare.ops.rows import reference as rows
from indexshare.ops.sparse_grouped import reference as grouped
from indexshare.ops.sparse_mla import reference as sparse


def _kernels() -> Status:
    found = native()
    return Status(found.library is not None, found.reason)


CPU = Backend(name="cpu", title="C++ kernels", devices=frozenset({"cpu"}), status=_kernels)
TORCH = Backend(name="torch", title="torch implementations", status=lambda: Status(True, "the only fast one"))
REFERENCE = Backend(name="reference", title="references", status=lambda: Status(True, "its formula is all there is"))


def _cpu(module: str, function: str, refuses: str) -> Implementation:
    return Implementation(CPU, f"{__package__}.{module}:{function}", f"{__package__}.{module}:{refuses}")


def _torch(module: str, function: str) -> Implementation:
    return Implementation(TORCH, f"{__package__}.{module}:{function}")


select_topk = Operation(
    indexer.select_topk, REFERENCE,
    _cpu("indexer.cpu_impl", "select_topk", "unsupported"), _torch("indexer.torch_impl", "select_topk"),
)  # fmt: skip
sparse_mla = Operation(
    sparse.sparse_mla, REFERENCE,
    _cpu("sparse_mla.cpu_impl", "sparse_mla", "unsupported"), _torch("sparse_mla.torch_impl", "sparse_mla"),
)  # fmt: skip
sparse_grouped = Operation(
    grouped.sparse_grouped, REFERENCE, _torch("sparse_grouped.torch_impl", "sparse_grouped"),
)  # fmt: skip
encode_rows = Operation(
    coded.encode_rows, REFERENCE,
    _cpu("coded.cpu_impl", "encode_rows", "unsupported"), _torch("coded.torch_impl", "encode_rows"),
)  # fmt: skip
dense_attention = Operation(
    dense.dense_attention, REFERENCE, _torch("dense_attention.torch_impl", "dense_attention"),
)  # fmt: skip
causal_attention = Operation(
    dense.causal_attention, REFERENCE, _torch("dense_attention.causal", "causal_attention"),
)  # fmt: skip
route = Operation(
    mixture.route, REFERENCE,
    _cpu("experts.cpu_impl", "route", "route_unsupported"), _torch("experts.torch_impl", "route"),
)  # fmt: skip
experts = Operation(
    mixture.experts, REFERENCE,
    _cpu("experts.cpu_impl", "experts", "experts_unsupported"), _torch("experts.torch_impl", "experts"),
)  # fmt: skip
rms_norm = Operation(
    rows.rms_norm, REFERENCE,
    _cpu("rows.cpu_impl", "rms_norm", "rms_norm_unsupported"), _torch("rows.torch_impl", "rms_norm"),
)  # fmt: skip
layer_norm = Operation(rows.layer_norm, REFERENCE, _torch("rows.torch_impl", "layer_norm"))
rope_tables = Operation(rows.rope_tables, REFERENCE, tensor=1)
apply_rope = Operation(
    rows.apply_rope, REFERENCE,
    _cpu("rows.cpu_impl", "apply_rope", "apply_rope_unsupported"), _torch("rows.torch_impl", "apply_rope"),
)  # fmt: skip
swiglu = Operation(
    rows.swiglu, REFERENCE, _cpu("rows.cpu_impl", "swiglu", "unsupported"), _torch("rows.torch_impl", "swiglu"),
)  # fmt: skip
wide_linear = Operation(
    rows.wide_linear, REFERENCE,
    _cpu("rows.cpu_impl", "wide_linear", "wide_linear_unsupported"), _torch("rows.torch_impl", "wide_linear"),
)  # fmt: skip
indexer_kl = Operation(indexer.indexer_kl, REFERENCE, _torch("indexer.loss", "indexer_kl"))
indexer_kl_mean = Operation(indexer.indexer_kl_mean, REFERENCE, _torch("indexer.loss", "indexer_kl_mean"))
linear_cross_entropy = Operation(
    loss.linear_cross_entropy, REFERENCE, _torch("loss.torch_impl", "linear_cross_entropy"),
)  # fmt: skip
linear_overlap = Operation(loss.linear_overlap, REFERENCE, _torch("loss.overlap", "linear_overlap"))
