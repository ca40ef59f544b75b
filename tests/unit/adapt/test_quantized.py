"""Packed weights in a model: every pass multiplies with the same weights, and mistakes are refused."""

from pathlib import Path

import pytest
import torch

from indexshare import ops
from indexshare.adapt.quantized import is_quantized, quantize_weights
from indexshare.checkpoint.load import load_model
from indexshare.checkpoint.save import save_model
from indexshare.config import preset
from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from indexshare.model.glm import GlmMoeDsa
from indexshare.ops.quant import dequantize_groups, quantize_groups
from tests.tolerance import TOL

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


def tiny(**changes: object) -> GlmMoeDsa:
    return GlmMoeDsa(preset("tiny").replace(**changes)).initialise(3).eval()


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    return dequantize_groups(*quantize_groups(weight.detach(), bits), weight.dtype)


def test_each_matrix_reads_back_as_its_groups_say() -> None:
    plain, packed = tiny(attention_bias=True), quantize_weights(tiny(attention_bias=True), "int4")
    assert is_quantized(packed) and not is_quantized(plain)
    for mine, other in zip(plain.layers, packed.layers, strict=True):
        a, b = mine.self_attn, other.self_attn
        for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"):
            assert torch.equal(getattr(b, name).weight, rounded(getattr(a, name).weight, 4)), name
            assert getattr(b, name).bias is None or torch.equal(getattr(b, name).bias, getattr(a, name).bias)
        keys, values = (w.detach() for w in a.kv_b_proj.weight.unflatten(0, (2, 20)).split((8, 12), dim=1))
        expected = torch.cat((rounded(keys.transpose(1, 2), 4).transpose(1, 2), rounded(values, 4)), dim=1)
        assert torch.equal(b.kv_b_proj.weight, expected.flatten(0, 1))
        if a.indexer is not None:
            assert torch.equal(b.indexer.wq_b.weight, rounded(a.indexer.wq_b.weight, 8))
            assert torch.equal(b.indexer.wk.weight, rounded(a.indexer.wk.weight, 8))
    experts, expected_experts = packed.layers[2].mlp.experts, plain.layers[2].mlp.experts
    assert torch.equal(experts.gate_up_proj, rounded(expected_experts.gate_up_proj, 4))
    assert torch.equal(experts.down_proj, rounded(expected_experts.down_proj, 4))
    assert torch.equal(packed.lm_head.weight, rounded(plain.lm_head.weight, 8))
    assert packed.layers[2].mlp.gate.weight is not None and packed.mtp is not None


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_decoding_with_packed_weights_equals_prefill_with_them(weights: str) -> None:
    """One kernel reads the packed integers, the other passes multiply with what they stand for."""
    model = quantize_weights(tiny(), weights)
    prompts = [torch.randint(256, (n,)).tolist() for n in (5, 60, 33)]
    outputs = LLM(model, cache_tokens=512).generate(prompts, GREEDY)
    with ops.force("torch"):
        expected = LLM(model, cache_tokens=512).generate(prompts, GREEDY)
    assert [out.token_ids for out in outputs] == [out.token_ids for out in expected]


def test_a_packed_model_is_a_plain_one_with_rounded_weights(tmp_path: Path) -> None:
    """Saved, it is the checkpoint of those weights; it follows a change of type."""
    packed, ids = quantize_weights(tiny(), "int8"), torch.randint(256, (1, 40))
    save_model(packed, tmp_path / "out")
    plain = load_model(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(packed(ids), plain(ids), **TOL["logits between forms", "float32"].bounds)
        assert packed.bfloat16()(ids).dtype == torch.bfloat16
    assert packed.layers[0].self_attn.o_proj.weight.dtype == torch.bfloat16


def test_tied_embeddings_stay_plain() -> None:
    model = quantize_weights(tiny(tie_word_embeddings=True), "int8")
    assert model.lm_head.weight is model.embed_tokens.weight


def test_mistakes_are_refused(tmp_path: Path) -> None:
    model = tiny()
    with pytest.raises(ValueError, match="weights is 'int5'; expected one of int8, int4"):
        quantize_weights(model, "int5")
    with pytest.raises(ValueError, match="weights applies to a model that is loaded"):
        LLM(model, weights="int8")
    with pytest.raises(ValueError, match="quantised already"):
        quantize_weights(quantize_weights(model, "int8"), "int4")
    save_model(tiny(), tmp_path / "out")
    assert is_quantized(LLM(tmp_path / "out", weights="int4", cache_tokens=64).model)
