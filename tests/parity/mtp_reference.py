"""The draft layer re-derived in float64 numpy from its published description; one slot at a time, nothing shared.

It imports nothing of the package: weights come by their public names, sizes from the public configuration keys.
Vectors are plain; a "slot" i pairs the embedding of token i+1 with the hidden state of token i.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
INNER_EPS = 1e-6  # norms inside the attention and the indexer


def rms(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x * x) + eps) * weight


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    centred = x - x.mean()
    return centred / np.sqrt(np.mean(centred * centred) + eps) * weight + bias


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def rotate(x: Array, position: int, theta: float, interleave: bool) -> Array:
    """Rotate the pairs of one vector; angles are products of float32 numbers, as in the public programs."""
    width = len(x)
    result = np.empty_like(x)
    for i in range(width // 2):
        frequency = np.float32(theta ** (-2 * i / width))
        angle = float(np.float32(position) * frequency)
        a, b = (2 * i, 2 * i + 1) if interleave else (i, i + width // 2)
        result[a] = x[a] * np.cos(angle) - x[b] * np.sin(angle)
        result[b] = x[b] * np.cos(angle) + x[a] * np.sin(angle)
    return result


def best(scores: Array, count: int) -> list[int]:
    """Indices of the largest scores; equal scores by lower index."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]


class NaiveDraftLayer:
    """The layer at public index `num_hidden_layers`.

    Args:
        config: public `config.json` keys.
        weights: public tensor names to float64 arrays.
    """

    def __init__(self, config: dict[str, Any], weights: dict[str, Array]) -> None:
        self.c = config
        self.prefix = f"model.layers.{config['num_hidden_layers']}."
        self.weights = weights
        self.theta = config["rope_parameters"]["rope_theta"]

    def w(self, name: str) -> Array:
        return self.weights[self.prefix + name]

    def mix(self, embedding: Array, hidden: Array) -> Array:
        """Embedding half first."""
        eps = self.c["rms_norm_eps"]
        halves = [rms(embedding, self.w("enorm.weight"), eps), rms(hidden, self.w("hnorm.weight"), eps)]
        return self.w("eh_proj.weight") @ np.concatenate(halves)

    def attention_input(self, x: Array) -> Array:
        return rms(x, self.w("input_layernorm.weight"), self.c["rms_norm_eps"])

    def query_latent(self, normed: Array) -> Array:
        latent = self.w("self_attn.q_a_proj.weight") @ normed
        return rms(latent, self.w("self_attn.q_a_layernorm.weight"), INNER_EPS)

    def queries(self, normed: Array, position: int) -> list[tuple[Array, Array]]:
        """(no-position part, rotated part) of every head."""
        nope = self.c["qk_nope_head_dim"]
        heads = self.w("self_attn.q_b_proj.weight") @ self.query_latent(normed)
        return [
            (q[:nope], rotate(q[nope:], position, self.theta, interleave=True))
            for q in heads.reshape(self.c["num_attention_heads"], -1)
        ]

    def key_and_values(self, normed: Array, position: int) -> tuple[list[Array], list[Array], Array]:
        """No-position keys and values of every head, and the rotated key they share."""
        rank, nope = self.c["kv_lora_rank"], self.c["qk_nope_head_dim"]
        both = self.w("self_attn.kv_a_proj_with_mqa.weight") @ normed
        latent = rms(both[:rank], self.w("self_attn.kv_a_layernorm.weight"), INNER_EPS)
        heads = (self.w("self_attn.kv_b_proj.weight") @ latent).reshape(self.c["num_attention_heads"], -1)
        shared = rotate(both[rank:], position, self.theta, interleave=True)
        return [h[:nope] for h in heads], [h[nope:] for h in heads], shared

    def index_part(self, x: Array, position: int) -> Array:
        rotary = self.c["qk_rope_head_dim"]
        turned = rotate(x[:rotary], position, self.theta, self.c["indexer_rope_interleave"])
        return np.concatenate([turned, x[rotary:]])

    def index_key(self, normed: Array, position: int) -> Array:
        name = "self_attn.indexer."
        key = self.w(name + "wk.weight") @ normed
        key = layer_norm(key, self.w(name + "k_norm.weight"), self.w(name + "k_norm.bias"), INNER_EPS)
        return self.index_part(key, position)

    def chosen(self, normed: Array, position: int, keys: list[Array]) -> list[int]:
        """The slots, of those up to and including its own, that the anchor at `position` attends to."""
        heads, width = self.c["index_n_heads"], self.c["index_head_dim"]
        queries = self.w("self_attn.indexer.wq_b.weight") @ self.query_latent(normed)
        gates = self.w("self_attn.indexer.weights_proj.weight") @ normed * heads**-0.5 * width**-0.5
        rotated = [self.index_part(q, position) for q in queries.reshape(heads, width)]
        scores = [
            sum(gate * max(float(q @ key), 0.0) for gate, q in zip(gates, rotated, strict=True))
            for key in keys[: position + 1]
        ]
        return best(np.array(scores), self.c["index_topk"])

    def attend(self, queries: list[tuple[Array, Array]], slots: list[int], cache: list[Any]) -> Array:
        """Softmax over the chosen slots, head by head, then the output projection."""
        scale = (self.c["qk_nope_head_dim"] + self.c["qk_rope_head_dim"]) ** -0.5
        outputs = []
        for head, (nope, rope) in enumerate(queries):
            logits = np.array([(nope @ cache[s][0][head] + rope @ cache[s][2]) * scale for s in slots])
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            outputs.append(sum(p * cache[s][1][head] for p, s in zip(weights, slots, strict=True)))
        return self.w("self_attn.o_proj.weight") @ np.concatenate(outputs)

    def swiglu(self, name: str, x: Array) -> Array:
        inner = silu(self.w(name + ".gate_proj.weight") @ x) * (self.w(name + ".up_proj.weight") @ x)
        return self.w(name + ".down_proj.weight") @ inner

    def mixture(self, x: Array) -> Array:
        """Routed experts by sigmoid score; groups by the sum of their two best; one pass over shared experts."""
        c = self.c
        scores = 1 / (1 + np.exp(-(self.w("mlp.gate.weight") @ x)))
        biased = scores + self.w("mlp.gate.e_score_correction_bias")
        groups = biased.reshape(c["n_group"], -1)
        kept = best(np.sort(groups, axis=1)[:, -2:].sum(axis=1), c["topk_group"])
        allowed = np.full(groups.shape, -np.inf)
        allowed[kept] = groups[kept]
        experts = best(allowed.reshape(-1), c["num_experts_per_tok"])
        gates = scores[experts]
        if c["norm_topk_prob"]:
            gates = gates / (gates.sum() + 1e-20)
        routed = sum(
            gate * c["routed_scaling_factor"] * self.swiglu(f"mlp.experts.{expert}", x)
            for gate, expert in zip(gates, experts, strict=True)
        )
        return routed + self.swiglu("mlp.shared_experts", x)

    def finish(self, x: Array, attended: Array) -> Array:
        """Residuals, feed-forward and `shared_head.norm`: input of the head and of the next step."""
        eps = self.c["rms_norm_eps"]
        x = x + attended
        x = x + self.mixture(rms(x, self.w("post_attention_layernorm.weight"), eps))
        return rms(x, self.w("shared_head.norm.weight"), eps)

    def run(self, embeddings: Array, hidden: Array, steps: int) -> list[Array]:
        """Every step from every anchor.

        Args:
            embeddings: [S + steps, hidden], of tokens 0, 1, ...; hidden: [S, hidden], trunk output of token i.

        Returns:
            One array [S, hidden] per step.
        """
        slots = range(len(hidden))
        mixed = [self.mix(embeddings[i + 1], hidden[i]) for i in slots]
        normed = [self.attention_input(x) for x in mixed]
        cache = [self.key_and_values(normed[i], i) for i in slots]
        keys = [self.index_key(normed[i], i) for i in slots]
        lists = [self.chosen(normed[i], i, keys) for i in slots]
        first = [self.finish(mixed[i], self.attend(self.queries(normed[i], i), lists[i], cache)) for i in slots]
        results = [first]
        for step in range(2, steps + 1):
            row = []
            for i in slots:
                x = self.mix(embeddings[i + step], results[-1][i])
                queries = self.queries(self.attention_input(x), i + step - 1)
                row.append(self.finish(x, self.attend(queries, lists[i], cache)))
            results.append(row)
        return [np.array(row) for row in results]
