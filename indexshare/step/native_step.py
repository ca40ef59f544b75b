"""The native decode step of a model: collects addresses of weights and caches once, then one call per step.

What it computes is `GlmMoeDsa.trunk` followed by `GlmMoeDsa.logits`; where it does not apply it says why.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from indexshare import ops
from indexshare.adapt.quantized import QuantExperts, QuantLinear, QuantUp, is_quantized
from indexshare.cache.paged import PagedCache, PagedView
from indexshare.cache.spilled import SpilledCache, SpilledView
from indexshare.cache.view import BatchView
from indexshare.config.layers import INDEX_KEYS, has_indexer
from indexshare.config.mla import LATENTS
from indexshare.model.attention.mla import LATENT_NORM_EPS, MLA
from indexshare.model.experts import MoE, SwiGLU
from indexshare.model.forward_pass import attention_limit
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.indexer import KEY_NORM_EPS, Indexer
from indexshare.model.layer import DecoderLayer
from indexshare.model.selectors import content
from indexshare.ops.coded.rows import kernel_form
from indexshare.ops.native import native
from indexshare.ops.packed.packing import PackedWeight
from indexshare.step import structs
from indexshare.step.decoder import Decoder, max_rows
from indexshare.step.spilled_rows import Fetch, Places, places_of
from indexshare.step.structs import FeedForward, IndexerWeights, LayerWeights, Matrix, ModelWeights

MAX_ROWS = 16  # beyond it a step is products of matrices, which torch multiplies faster


def unavailable() -> str | None:
    """Why every decode step must be computed operation by operation, or None.

    Forcing anything but `"cpu"` is such a reason, so that a forced implementation is what runs.
    """
    if any(name != "cpu" for name in ops.forced()):
        return "forced"
    found = native()
    return f"C++ kernels {found.reason}" if found.library is None else structs.layout_refusal(found.library)


def explain() -> dict[str, str]:
    """The decode step as a row of `ops.explain`."""
    refusal = unavailable()
    if refusal is not None:
        return {"op": "decode step", "implementation": "torch", "reason": refusal}
    return {"op": "decode step", "implementation": "cpu", "reason": f"all layers in one call, {native().reason}"}


class NativeStep:
    """Runs decode steps of one model.

    Weights may change in place at any time. After `GlmMoeDsa.weights_changed` the next step looks for replaced weights
    and modules; that takes as long as a layer. Where nobody called it, they are found when a sequence begins, or
    after a prompt (`look_again`), and until then the old ones are kept and used, so do not free their memory under
    them (`untyped_storage().resize_`).

    Args:
        model: in evaluation mode; its draft layer is not used.
    """

    def __init__(self, model: GlmMoeDsa) -> None:
        self.model = model
        self._addresses: list[int] = []
        self._decoder: Decoder | None = None
        self._looked_at: int | None = None  # version of the weights when last looked at
        self._pools: dict[str, Any] = {}
        self._cache: ref[PagedCache] | None = None
        self._parts = refusal_of_parts(model.layers)

    def refusal(self, view: BatchView) -> str | None:
        """Why the next step cannot run here, or None. Cheap enough to ask at every step."""
        reason = unavailable()
        if reason is not None or self._parts is not None:
            return reason or self._parts
        if not isinstance(view, PagedView):
            return "not a paged cache"
        if view.num_rows > min(MAX_ROWS, max_rows()):
            return f"{view.num_rows} rows, more than {min(MAX_ROWS, max_rows())}"
        if torch.is_grad_enabled():
            return "gradients are wanted"
        return self._of_weights(view.cache)

    def knows(self, cache: PagedCache) -> bool:
        """Whether steps of few rows on this cache run here."""
        return unavailable() is None and self._parts is None and self._of_weights(cache) is None

    def _of_weights(self, cache: PagedCache) -> str | None:
        config, weight = self.model.config, self.model.embed_tokens.weight
        if weight.device.type != "cpu" or cache.device.type != "cpu":
            return "not on the CPU"
        if not structs.supported_dtype(weight.dtype) or cache.dtype != weight.dtype:
            return f"dtypes {weight.dtype}, {cache.dtype}"
        if not cache.in_place:
            return "a cache with a codec that the kernels do not know"
        if weight.dtype == torch.bfloat16 and (config.latent_dim % 2 or config.index_head_dim % 2):
            return "odd width in bfloat16"
        return None

    def __call__(
        self, ids: Sequence[int], view: PagedView, *, full_attention_below: int = 0, wanted: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the view's rows and write their keys into its cache; `refusal` must be None.

        Args:
            ids: token of each row.
            view: rows and cache.
            full_attention_below: as in `GlmMoeDsa.trunk`.
            wanted: rows whose logits are wanted, all by default.

        Returns:
            Hidden states `[N, hidden]` after the final norm and float32 logits `[len(wanted), vocab_size]`.

        Raises:
            ValueError: an id outside the vocabulary, a sequence beyond the model's context, or weights that lie in
                memory with gaps.
        """
        config = self.model.config
        longest = max((span.total for span in view.spans), default=0)
        if self._cache is None or self._cache() is not view.cache or any(span.past == 0 for span in view.spans):
            self.look_again()
        if len(ids) != view.num_rows or longest > config.max_position_embeddings:
            self.model.check_ids(torch.tensor(ids), view)  # raises
        return self._run(ids, view, full_attention_below, wanted)

    def _run(
        self, ids: Sequence[int], view: PagedView, full_attention_below: int, wanted: Sequence[int] | None, **draft: Any
    ) -> tuple[Tensor, Tensor]:
        decoder, limit = self._current(), attention_limit(self.model.config, full_attention_below)
        return decoder.step(
            ids, view.positions, view.written, tables_of(view), **self._of_cache(view.cache),
            block_size=view.cache.block_size, limit=limit, wanted=range(len(ids)) if wanted is None else wanted,
            places=self._places(view, limit, writes="reuse" not in draft), **draft,
        )  # fmt: skip

    def _places(self, view: PagedView, limit: int, *, writes: bool = True) -> Places | None:
        """Where the rows of a cache lie that has others in files."""
        return places_of(view, self._layers, limit, writes=writes) if isinstance(view, SpilledView) else None

    def look_again(self) -> None:
        """Find out before the next step whether all weights are where they were."""
        self._looked_at = None

    def _current(self) -> Decoder:
        """The decoder for the weights as they were when last looked at."""
        version = self.model.weights_version
        if self._decoder is None or self._looked_at != version:
            addresses = [tensor.data_ptr() for tensor in self._weights()]
            if self._decoder is None or addresses != self._addresses:
                self._decoder = self._made()
                self._addresses = addresses
            self._looked_at = version
        return self._decoder

    def _made(self) -> Decoder:
        return _Collector(self.model).trunk()

    @property
    def _modules(self) -> tuple[nn.Module, ...]:
        """What has all that a step reads but the caches."""
        model = self.model
        return model.embed_tokens, model.layers, model.norm, model.lm_head

    @property
    def _layers(self) -> Sequence[int]:
        """Numbers of its layers in the cache."""
        return range(self.model.config.num_hidden_layers)

    def _weights(self) -> Iterator[Tensor]:
        for part in self._modules:
            for module in part.modules():
                for table in (module._parameters, module._buffers):
                    yield from (tensor for tensor in table.values() if tensor is not None)

    def _of_cache(self, cache: PagedCache) -> dict[str, Any]:
        """Addresses of a cache's pools, which never move, and how their rows are stored."""
        if self._cache is None or self._cache() is not cache:
            config, layers = self.model.config, self._layers
            latents = [cache.pool(layer, LATENTS) for layer in layers]
            keys = [cache.pool(layer, INDEX_KEYS) if has_indexer(config, layer) else None for layer in layers]
            self._pools = {
                "latents": structs.pointers([pool.stored for pool in latents]),
                "index_keys": structs.pointers([None if pool is None else pool.stored for pool in keys]),
                "latent_strides": structs.integers([p.stored.stride(0) * p.stored.element_size() for p in latents]),
                "latent_form": kernel_form(latents[0].kernel_layout),
                "key_form": kernel_form(cache.pool(layers[0], INDEX_KEYS).kernel_layout),
            }
            if isinstance(cache, SpilledCache):
                self._pools |= {"fetch": Fetch(cache, layers), "fetch_each": cache.by_layer}
            self._cache = ref(cache)
        return self._pools


def draft_decoder(model: GlmMoeDsa) -> Decoder:
    """The draft layer of a model, prepared for steps."""
    return _Collector(model).draft()


def tables_of(view: PagedView) -> list[Tensor]:
    """Of each row, the blocks of its sequence."""
    return [view.block_ids(i) for i, span in enumerate(view.spans) for _ in range(span.length)]


def refusal_of_parts(layers: Iterable[nn.Module]) -> str | None:
    """Why the step does not know some layers, or None: they have latent attention and the indexer's own choice."""
    for layer in layers:
        assert isinstance(layer, DecoderLayer)
        mla = layer.self_attn
        if not isinstance(mla, MLA):
            return f"attention of another kind: {type(mla).__name__}"
        if mla.indexer is not None and mla.indexer.selector is not content:
            return "the selection is not the indexer's alone"
    return None


class _Collector:
    """Fills the C++ side's structures from modules, and keeps alive what they point to."""

    def __init__(self, model: GlmMoeDsa) -> None:
        self.model = model
        self.keep: list[Any] = []

    def trunk(self) -> Decoder:
        """The model without its draft layer."""
        layers = [layer for layer in self.model.layers if isinstance(layer, DecoderLayer)]
        return self.decoder(layers, self.model.norm.weight)

    def draft(self) -> Decoder:
        """The draft layer, under the trunk's embedding and head."""
        mtp = self.model.mtp
        assert mtp is not None
        return self.decoder(
            [mtp.layer], mtp.shared_head_norm.weight, embedding_norm=self.vector(mtp.enorm.weight),
            state_norm=self.vector(mtp.hnorm.weight), mix=self.linear(mtp.eh_proj),
        )  # fmt: skip

    def decoder(self, stack: Sequence[DecoderLayer], final_norm: Tensor, **draft: Any) -> Decoder:
        """Layers of the model between its embedding and its head."""
        model, config = self.model, self.model.config
        layers = (LayerWeights * len(stack))(*map(self.layer, stack))
        rope = config.rope_parameters
        frequencies = torch.tensor(rope.inverse_frequencies(config.qk_rope_head_dim), dtype=torch.float32)
        self.keep += [layers, frequencies]
        first = stack[0].self_attn
        assert isinstance(first, MLA) and first.indexer is not None, "the first layer is Full in every plan"
        weights = ModelWeights(
            embedding=self.vector(model.embed_tokens.weight), final_norm=self.vector(final_norm),
            head=self.linear(model.lm_head), layers=ctypes.cast(layers, ctypes.POINTER(LayerWeights)),
            frequencies=frequencies.data_ptr(), num_layers=len(stack), vocabulary=config.vocab_size,
            hidden=config.hidden_size, heads=config.num_attention_heads, rank=config.kv_lora_rank,
            rope=config.qk_rope_head_dim, nope=config.qk_nope_head_dim, value=config.v_head_dim,
            query_rank=config.q_lora_rank, index_heads=config.index_n_heads, index_width=config.index_head_dim,
            topk=config.index_topk, interleave=config.indexer_rope_interleave, experts=config.n_routed_experts,
            experts_per_token=config.num_experts_per_tok, groups=config.n_group, chosen_groups=config.topk_group,
            normalise=config.norm_topk_prob, quantized=is_quantized(model), norm_eps=config.rms_norm_eps,
            latent_eps=LATENT_NORM_EPS, key_eps=KEY_NORM_EPS, rope_scale=rope.table_scale,
            attention_scale=first.scale, index_scale=first.indexer.scale, routed_scale=config.routed_scaling_factor,
            **draft,
        )  # fmt: skip
        return Decoder(weights, model.embed_tokens.weight.dtype, self.keep)

    def layer(self, layer: DecoderLayer) -> LayerWeights:
        weights = LayerWeights(
            input_norm=self.vector(layer.input_layernorm.weight),
            post_norm=self.vector(layer.post_attention_layernorm.weight),
        )
        assert isinstance(layer.self_attn, MLA)
        self.attention(layer.self_attn, weights)
        if isinstance(layer.mlp, MoE):
            weights.sparse = 1
            weights.router = self.matrix(layer.mlp.gate.weight)
            weights.router_bias = self.vector(layer.mlp.gate.e_score_correction_bias)
            weights.experts = self.experts(layer.mlp)
            if layer.mlp.shared_experts is not None:
                weights.dense = self.swiglu(layer.mlp.shared_experts)
        else:
            weights.dense = self.swiglu(layer.mlp)
        return weights

    def attention(self, mla: MLA, weights: LayerWeights) -> None:
        weights.query_norm = self.vector(mla.q_a_layernorm.weight)
        weights.latent_norm = self.vector(mla.kv_a_layernorm.weight)
        weights.query_down = self.linear(mla.q_a_proj)
        weights.query_up = self.heads(mla.q_b_proj, mla.num_heads)
        weights.latent_down = self.linear(mla.kv_a_proj_with_mqa)
        weights.key_up, weights.value_up = self.up(mla)
        weights.output = self.linear(mla.o_proj)
        if mla.indexer is not None:
            weights.full = 1
            weights.indexer = self.indexer(mla.indexer)

    def indexer(self, indexer: Indexer) -> IndexerWeights:
        return IndexerWeights(
            key=self.linear(indexer.wk),
            query=self.heads(indexer.wq_b, indexer.num_heads),
            head_weights=self.linear(indexer.weights_proj),
            norm_weight=self.vector(indexer.k_norm.weight),
            norm_bias=self.vector(indexer.k_norm.bias),
        )

    def swiglu(self, mlp: SwiGLU) -> FeedForward:
        return FeedForward(
            gate=self.linear(mlp.gate_proj), up=self.linear(mlp.up_proj), down=self.linear(mlp.down_proj)
        )

    def experts(self, moe: MoE) -> FeedForward:
        if isinstance(moe.experts, QuantExperts):
            return FeedForward(*(self.packed(moe.experts.stack(name)) for name in ("gate", "up", "down")))
        gate, up = moe.experts.gate_up_proj.chunk(2, dim=1)
        return FeedForward(gate=self.matrix(gate), up=self.matrix(up), down=self.matrix(moe.experts.down_proj))

    def up(self, mla: MLA) -> tuple[Matrix, Matrix]:
        if isinstance(mla.kv_b_proj, QuantUp):
            return self.packed(mla.kv_b_proj.stack("keys")), self.packed(mla.kv_b_proj.stack("values"))
        by_head = mla.kv_b_proj.weight.unflatten(0, (mla.num_heads, -1))
        return self.matrix(by_head[:, : mla.nope_dim]), self.matrix(by_head[:, mla.nope_dim :])

    def heads(self, linear: nn.Linear | QuantLinear, heads: int) -> Matrix:
        if isinstance(linear, QuantLinear):
            return self.packed(linear.stack("rows"))
        return self.matrix(linear.weight.unflatten(0, (heads, -1)))

    def linear(self, linear: nn.Linear | QuantLinear) -> Matrix:
        if not isinstance(linear, QuantLinear):
            return self.matrix(linear.weight, linear.bias)
        matrix = self.packed(linear.stack("rows"))
        if linear.bias is not None:
            matrix.bias = self.vector(linear.bias)
        return matrix

    def packed(self, weight: PackedWeight) -> Matrix:
        self.keep.append(weight)
        return weight.matrix()

    def matrix(self, weight: Tensor, bias: Tensor | None = None) -> Matrix:
        self.keep += [weight.detach(), None if bias is None else bias.detach()]
        return structs.plain(weight, bias)

    def vector(self, tensor: Tensor) -> int:
        if not tensor.is_contiguous():
            shape, strides = list(tensor.shape), tensor.stride()
            raise ValueError(f"a weight of shape {shape} has strides {strides}; make it contiguous")
        self.keep.append(tensor.detach())
        return tensor.data_ptr()
