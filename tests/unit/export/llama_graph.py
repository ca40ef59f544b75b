"""A slow model that reads nothing but a GGUF file, by the rules of llama.cpp's `glm-dsa` and `deepseek32` graphs.

Whatever it needs comes from keys and tensors under llama.cpp's names, so that agreement with our own model says that
both are right: names, layouts, rotary pairs, the order of the halves, the widened index heads.
"""

import math
from pathlib import Path
from typing import Any

import gguf
import torch
import torch.nn.functional as F
from torch import Tensor


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Keys with their values, and tensors by name in float32, outermost dimension first."""
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        tensors[tensor.name] = torch.from_numpy(values.copy()).view(*reversed(tensor.shape.tolist()))
    return keys, tensors


def types(path: Path) -> dict[str, str]:
    """Type of every tensor by name."""
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def hadamard(width: int) -> Tensor:
    """The matrix that the graph multiplies index queries and keys by; only powers of two from 64 have one."""
    side = 64
    while width % (side * 2) == 0:
        side *= 2
    assert side == width, f"ggml_mul_mat would refuse {side} against {width}"
    matrix = torch.ones(1, 1)
    while len(matrix) < side:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix / math.sqrt(side)


class Graph:
    """One sequence, all positions at once, no cache."""

    def __init__(self, path: Path) -> None:
        keys, self.tensors = read(path)
        self.arch = keys["general.architecture"]
        self.keys = {name.removeprefix(f"{self.arch}."): value for name, value in keys.items()}
        self.draft = self.keys.get("nextn_predict_layers", 0)
        self.layers = self.keys["block_count"] - self.draft
        self.full = self.keys.get("attention.indexer.types", [True] * self.layers)
        assert len(self.full) == self.layers

    def weight(self, block: int, name: str) -> Tensor:
        """Tensor `blk.N.name`."""
        return self.tensors[f"blk.{block}.{name}"]

    def rms(self, x: Tensor, weight: Tensor) -> Tensor:
        """Root-mean-square norm."""
        eps = self.keys["attention.layer_norm_rms_epsilon"]
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

    def rotate(self, x: Tensor, neighbours: bool) -> Tensor:
        """ggml's rope on the first values of `[T, H, D]`: pairs of neighbours (norm) or of halves (neox)."""
        width = self.keys["rope.dimension_count"]
        angles = torch.arange(len(x))[:, None] * self.frequencies()
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        rotary = x[..., :width]
        first, second = (rotary[..., 0::2], rotary[..., 1::2]) if neighbours else rotary.chunk(2, dim=-1)
        turned = (first * cos - second * sin, first * sin + second * cos)
        joined = torch.stack(turned, -1).flatten(-2) if neighbours else torch.cat(turned, -1)
        return torch.cat((joined, x[..., width:]), -1)

    def frequencies(self) -> Tensor:
        """Angles per position. With YaRN, ggml's factor on cosines and sines is cancelled by llama.cpp's own."""
        width, base = self.keys["rope.dimension_count"], self.keys["rope.freq_base"]
        steps = torch.arange(width // 2, dtype=torch.float32)
        plain = base ** (-2 * steps / width)
        if self.keys.get("rope.scaling.type") != "yarn":
            return plain
        turns = self.keys["rope.scaling.original_context_length"] / (2 * math.pi)
        low, high = (
            width * math.log(turns / self.keys[f"rope.scaling.yarn_beta_{end}"]) / (2 * math.log(base))
            for end in ("fast", "slow")
        )
        low, high = max(math.floor(low), 0), min(math.ceil(high), width - 1)
        stretched = ((steps - low) / max(high - low, 0.001)).clamp(0, 1)
        return plain * (1 - stretched) + plain / self.keys["rope.scaling.factor"] * stretched

    def temperature(self) -> float:
        """YaRN's factor on the scores' root: the loader divides the multiplier by 0.1."""
        if self.keys.get("rope.scaling.type") != "yarn":
            return 1.0
        multiplier = self.keys["rope.scaling.yarn_log_multiplier"] / 0.1
        return 1 + 0.1 * multiplier * math.log(self.keys["rope.scaling.factor"])

    def selection(self, block: int, x: Tensor, q_latent: Tensor) -> Tensor:
        """Mask `[T, T]` of what each query attends to, by the block's indexer."""
        width, heads = self.keys["attention.indexer.key_length"], self.keys["attention.indexer.head_count"]
        neighbours, turn = self.arch == "glm-dsa", hadamard(width)
        q = (q_latent @ self.weight(block, "indexer.attn_q_b.weight").T).view(len(x), heads, width)
        k = F.layer_norm(x @ self.weight(block, "indexer.attn_k.weight").T, (width,), eps=1e-6)
        k = k * self.weight(block, "indexer.k_norm.weight") + self.weight(block, "indexer.k_norm.bias")
        q, k = self.rotate(q, neighbours) @ turn, self.rotate(k[:, None], neighbours)[:, 0] @ turn
        gates = x @ self.weight(block, "indexer.proj.weight").T
        scores = (torch.einsum("qhd,kd->qhk", q, k).relu() * gates[..., None]).sum(1) / math.sqrt(width * heads)
        causal = torch.ones(len(x), len(x)).tril().bool()
        scores = scores.masked_fill(~causal, -torch.inf)
        best = scores.topk(min(self.keys["attention.indexer.top_k"], len(x)), dim=-1).indices
        return torch.zeros_like(causal).scatter(1, best, True) & causal

    def attention(self, block: int, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Absorbed attention over latents; the mask of a Full block is made here when none is given."""
        heads, rank = self.keys["attention.head_count"], self.keys["attention.kv_lora_rank"]
        width, rope = self.keys["attention.key_length_mla"], self.keys["rope.dimension_count"]
        q_latent = self.rms(x @ self.weight(block, "attn_q_a.weight").T, self.weight(block, "attn_q_a_norm.weight"))
        if mask is None:
            mask = self.selection(block, x, q_latent)
        q = (q_latent @ self.weight(block, "attn_q_b.weight").T).view(len(x), heads, width)
        plain, rotary = q.split([width - rope, rope], dim=-1)
        absorbed = torch.einsum("qhd,hrd->qhr", plain, self.weight(block, "attn_k_b.weight"))
        q = torch.cat((absorbed, self.rotate(rotary, True)), -1)
        latent, k_rotary = (x @ self.weight(block, "attn_kv_a_mqa.weight").T).split([rank, rope], dim=-1)
        latent = self.rms(latent, self.weight(block, "attn_kv_a_norm.weight"))
        k = torch.cat((latent, self.rotate(k_rotary[:, None], True)[:, 0]), -1)
        assert k.shape[-1] == self.keys["attention.key_length"] and rank == self.keys["attention.value_length"]
        scores = torch.einsum("qhr,kr->hqk", q, k) * self.temperature() ** 2 / math.sqrt(width)
        probabilities = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        out = torch.einsum("hqk,kr,hvr->qhv", probabilities, latent, self.weight(block, "attn_v_b.weight"))
        return out.flatten(1) @ self.weight(block, "attn_output.weight").T, mask

    def mlp(self, block: int, x: Tensor) -> Tensor:
        """Dense, or routed experts with the shared one."""

        def gated(kind: str, pick: Any = slice(None)) -> Tensor:
            gate, up, down = (self.weight(block, f"ffn_{name}{kind}.weight")[pick] for name in ("gate", "up", "down"))
            return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T

        if block < self.keys["leading_dense_block_count"]:
            return gated("")
        chances = (x @ self.weight(block, "ffn_gate_inp.weight").T).sigmoid()
        chosen = self.within_groups(chances + self.weight(block, "exp_probs_b.bias"))
        chosen = chosen.topk(self.keys["expert_used_count"], dim=-1).indices
        weights = torch.zeros_like(chances).scatter(1, chosen, chances.gather(1, chosen))
        if self.keys["expert_weights_norm"]:
            weights = weights / weights.sum(-1, keepdim=True)
        weights = weights * self.keys["expert_weights_scale"]
        routed = sum(weights[:, e, None] * gated("_exps", e) for e in range(self.keys["expert_count"]))
        return routed + gated("_shexp")

    def within_groups(self, scores: Tensor) -> Tensor:
        """Scores with all but the best groups (by the sum of their best two) ruled out."""
        groups, used = self.keys["expert_group_count"], self.keys["expert_group_used_count"]
        if groups == 1:
            return scores
        assert used < groups, "llama.cpp asserts it"
        by_group = scores.view(len(scores), groups, -1)
        best = by_group.topk(2, dim=-1).values.sum(-1).topk(used, dim=-1).indices
        out = torch.ones(len(scores), groups).scatter(1, best, 0).bool()
        return by_group.masked_fill(out[..., None], -torch.inf).flatten(1)

    def block(self, block: int, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """One decoder block."""
        out, mask = self.attention(block, self.rms(x, self.weight(block, "attn_norm.weight")), mask)
        x = x + out
        return x + self.mlp(block, self.rms(x, self.weight(block, "ffn_norm.weight"))), mask

    def hidden(self, tokens: Tensor) -> Tensor:
        """States after the final norm `[T, hidden]`."""
        x, mask = self.tensors["token_embd.weight"][tokens], None
        for block in range(self.layers):
            x, mask = self.block(block, x, None if self.full[block] else mask)
        return self.rms(x, self.tensors["output_norm.weight"])

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `[T, V]`; a file without a head uses the embedding."""
        return hidden @ self.tensors.get("output.weight", self.tensors["token_embd.weight"]).T

    def draft_hidden(self, following: Tensor, hidden: Tensor) -> Tensor:
        """States of the draft block, which attends to everything, for the tokens that follow each row's."""
        block = self.layers
        e = self.rms(self.tensors["token_embd.weight"][following], self.weight(block, "nextn.enorm.weight"))
        h = self.rms(hidden, self.weight(block, "nextn.hnorm.weight"))
        x = torch.cat((e, h), -1) @ self.weight(block, "nextn.eh_proj.weight").T
        out, _ = self.block(block, x, torch.ones(len(x), len(x)).tril().bool())
        return self.rms(out, self.weight(block, "nextn.shared_head_norm.weight"))
