"""The stack: every form of attention gives one answer, chunking and batching do not matter, bad input is refused."""

import pytest
import torch

from indexshare import ops
from indexshare.cache.paged import PagedCache
from indexshare.cache.view import InFlightView
from indexshare.config import ModelConfig, SharePlan, preset
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.observe import AttentionRecord, Observer
from indexshare.model.selection import FULL_ATTENTION
from tests.tolerance import TOL

LOGITS = TOL["logits between forms", "float32"].bounds


def tiny(**changes: object) -> GlmMoeDsa:
    return GlmMoeDsa(preset("tiny").replace(**changes)).initialise(3).eval()


@pytest.mark.parametrize("pattern", ["FFFFFF", "FFFSSS", "FSFSSF", "FSSSSS"])
def test_fast_paths_equal_the_reference_beyond_topk(pattern: str) -> None:
    model = tiny(indexer_types=SharePlan.from_pattern(pattern).types)
    ids = torch.randint(0, 256, (2, 61))
    with torch.no_grad():
        actual = model(ids)
        with ops.force("reference"):
            expected = model(ids)
    torch.testing.assert_close(actual, expected, **LOGITS)


def test_selection_matters_beyond_topk_and_only_there() -> None:
    model = tiny()
    ids = torch.randint(0, 256, (1, 40))
    with torch.no_grad():
        sparse, full = model(ids), model(ids, full_attention_below=FULL_ATTENTION)
        part = model(ids, full_attention_below=20)
    torch.testing.assert_close(sparse[:, :8], full[:, :8], **LOGITS)
    torch.testing.assert_close(part[:, :20], full[:, :20], **LOGITS)
    assert (sparse[:, 8:] - full[:, 8:]).abs().amax() > 0.1
    assert (part[:, 20:] - full[:, 20:]).abs().amax() > 0.1


@pytest.mark.parametrize("chunks", [[50], [1] * 50, [3, 20, 27], [8, 1, 41]])
@pytest.mark.parametrize("full_below", [0, 25, FULL_ATTENTION])
def test_any_chunking_through_the_paged_cache(chunks: list[int], full_below: int) -> None:
    model = tiny()
    ids = torch.randint(0, 256, (50,))
    cache = PagedCache(model.config, num_blocks=12, block_size=8, dtype=torch.float32)
    table, past, parts = [3, 4, 1, 7, 0, 9, 10], 0, []
    with torch.no_grad():
        expected = model.trunk(ids, InFlightView([50]), full_attention_below=full_below)
        for length in chunks:
            view = cache.view([table], [(past, length)])
            parts.append(model.trunk(ids[past : past + length], view, full_attention_below=full_below))
            past += length
    torch.testing.assert_close(torch.cat(parts), expected, **LOGITS)


def test_packed_sequences_do_not_see_each_other() -> None:
    model = tiny()
    ids = [torch.randint(0, 256, (n,)) for n in (1, 30, 17)]
    with torch.no_grad():
        packed = model.trunk(torch.cat(ids), InFlightView([1, 30, 17]))
        alone = torch.cat([model.trunk(i, InFlightView([len(i)])) for i in ids])
    torch.testing.assert_close(packed, alone, **LOGITS)


def test_padding_on_either_side() -> None:
    model = tiny()
    ids = torch.randint(0, 256, (2, 20))
    mask = torch.ones(2, 20)
    mask[0, :6], mask[1, 13:] = 0, 0
    with torch.no_grad():
        logits = model(ids, mask)
        torch.testing.assert_close(logits[0, 6:], model(ids[:1, 6:])[0], **LOGITS)
        torch.testing.assert_close(logits[1, :13], model(ids[1:, :13])[0], **LOGITS)
    assert not logits[0, :6].any()


def test_indexer_gets_gradient_from_its_own_loss_only() -> None:
    model = tiny()
    model(torch.randint(0, 256, (1, 30))).sum().backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("mtp"):
            assert (parameter.grad is None) == (".indexer." in name), name


def test_observer_sees_every_layer_and_its_source() -> None:
    class Recorder(Observer):
        wants_attention = True

        def __init__(self) -> None:
            self.attended: list[tuple[int, int, bool]] = []
            self.routed: list[int] = []

        def attention(self, record: AttentionRecord) -> None:
            self.attended.append((record.layer, record.source, record.index is not None))

        def routing(self, layer: int, expert_ids: torch.Tensor) -> None:
            assert expert_ids.shape == (30, 2)
            self.routed.append(layer)

    model, recorder = tiny(), Recorder()
    with torch.no_grad():
        model.trunk(torch.randint(0, 256, (30,)), InFlightView([30]), observer=recorder)
    assert recorder.attended == [
        (0, 0, True),
        (1, 1, True),
        (2, 2, True),
        (3, 2, False),
        (4, 2, False),
        (5, 2, False),
    ]
    assert recorder.routed == [1, 2, 3, 4, 5]


def test_bias_of_the_router_stays_float32() -> None:
    model = tiny().bfloat16()
    assert model.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32
    assert model.layers[1].mlp.gate.weight.dtype == torch.bfloat16
    assert model.double().layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([[0, 256]]), "token id 256 is outside"),
        (torch.tensor([[-1, 5]]), "token id -1"),
        (torch.tensor([1, 2]), "expected \\[batch, sequence\\]"),
        (torch.empty(0, 4).long(), "both at least 1"),
        (torch.zeros(1, 4), "expected integers"),
        (torch.zeros(1, 4097).long(), "4097 tokens, the model's context is 4096"),
    ],
)
def test_bad_ids_are_refused(ids: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny()(ids)


def test_masks_are_checked() -> None:
    with pytest.raises(ValueError, match="no real token"):
        tiny()(torch.zeros(2, 3).long(), torch.tensor([[1, 1, 1], [0, 0, 0]]))
    with pytest.raises(ValueError, match="attention_mask has shape"):
        tiny()(torch.zeros(2, 3).long(), torch.ones(2, 4))


def test_a_bfloat16_model_stays_near_float32() -> None:
    model = tiny(indexer_types=("full",) * 6)
    ids = torch.randint(0, 256, (1, 40))
    with torch.no_grad():
        exact = model(ids, full_attention_below=FULL_ATTENTION).softmax(-1)
        rounded = model.bfloat16()(ids, full_attention_below=FULL_ATTENTION).float().softmax(-1)
    distance = 0.5 * (rounded - exact).abs().sum(-1).mean()
    assert distance < TOL["mean total variation", "bfloat16"].atol


def test_tied_embeddings_share_storage() -> None:
    config = preset("tiny").replace(tie_word_embeddings=True)
    assert isinstance(config, ModelConfig)
    model = GlmMoeDsa(config)
    assert model.lm_head.weight is model.embed_tokens.weight
