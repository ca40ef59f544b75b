"""Search by similarity: which earlier selection leaves each layer's attention output most as it is.

Source: IndexCache, appendix C, where it does not beat a uniform pattern: similarity is local, and says nothing of the
one token that is missing. Here to be compared with.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from indexshare.cache.view import InFlightView
from indexshare.config.share_plan import SharePlan
from indexshare.model.forward_pass import ForwardPass
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.layer import DecoderLayer
from indexshare.model.selection import Selection

Progress = Callable[[int, int], None]


@torch.no_grad()
def similarities(model: GlmMoeDsa, windows: Tensor, progress: Progress | None = None) -> Tensor:
    """Mean cosine similarity of each layer's attention output with its own selection and with that of another layer.

    Args:
        model: in evaluation mode.
        windows: int64 `[W, T]`.
        progress: told (windows done, windows in all).

    Returns:
        float64 `[N, N]`, entry (i, j) for layer i with the selection of layer j < i; one on the diagonal, minus
        infinity above it and for Shared j.
    """
    layers = model.config.num_hidden_layers
    sums, queries = torch.zeros(layers, layers, dtype=torch.float64), 0
    for number, window in enumerate(windows):
        queries += _add(model, window.to(model.embed_tokens.weight.device), sums)
        if progress is not None:
            progress(number + 1, len(windows))
    result = sums / max(1, queries)
    for layer in range(layers):
        result[layer, layer] = 1.0
        result[layer, layer + 1 :] = -torch.inf
        if not model.plan.is_full(layer):
            result[:, layer] = -torch.inf
    return result


def _add(model: GlmMoeDsa, ids: Tensor, sums: Tensor) -> int:
    """Add one window's similarities; the number of its queries."""
    view = InFlightView([ids.numel()], ids.device)
    pass_ = ForwardPass.begin(model.config, view)
    x, selection = model.embed_tokens(ids), None
    chosen: dict[int, Selection] = {}
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, DecoderLayer)
        before, normed = selection, layer.input_layernorm(x)
        own, selection = layer.self_attn(normed, pass_, before)
        if model.plan.is_full(number):
            chosen[number] = selection
        rows = selection.rows
        for other, theirs in chosen.items():
            if other < number:
                output = layer.self_attn.reuse(normed, pass_, theirs)
                sums[number, other] += F.cosine_similarity(own[rows], output[rows], dim=-1).double().sum().cpu()
        x, selection = layer(x, pass_, before)
    return rows.numel()


def most_similar(similarity: Tensor, keep: int) -> SharePlan:
    """The plan with `keep` Full layers that maximises the sum of Shared layers' similarities: a dynamic programme.

    Args:
        similarity: `[N, N]`, as `similarities` gives it.
        keep: from 1 to the number of layers that may be Full.
    """
    layers = similarity.shape[0]
    values = similarity.tolist()
    # best[m][i]: most that layers below i can add up to where layer i is the m-th Full one (from 0)
    best = [[-float("inf")] * layers for _ in range(keep)]
    origin = [[0] * layers for _ in range(keep)]
    served = [[0.0] * (layers + 1) for _ in range(layers)]  # by Full layer, up to before a layer
    for full in range(layers):
        for layer in range(full + 1, layers):
            served[full][layer + 1] = served[full][layer] + values[layer][full]
    best[0][0] = 0.0
    for m in range(1, keep):
        for layer in range(m, layers):
            if values[layer][layer] == -float("inf"):
                continue
            options = [(best[m - 1][full] + served[full][layer], -full) for full in range(m - 1, layer)]
            best[m][layer], negative = max(options)
            origin[m][layer] = -negative
    last = max(range(keep - 1, layers), key=lambda full: best[keep - 1][full] + served[full][layers])
    full_layers = [last]
    for m in range(keep - 1, 0, -1):
        full_layers.append(origin[m][full_layers[-1]])
    return SharePlan.from_pattern("".join("F" if layer in full_layers else "S" for layer in range(layers)))
