"""Models with an indexer in every layer: what is copied, what is shared, and that nothing else changes."""

import torch

from indexshare.checkpoint.surgery import all_full, every_indexer, full_twin
from indexshare.config.presets import preset
from indexshare.model.glm import GlmMoeDsa


def test_the_twin_shares_weights_and_has_every_indexer() -> None:
    model = GlmMoeDsa(preset("tiny")).initialise(0).eval()
    twin = full_twin(model)
    assert (model.plan.pattern, twin.plan.pattern) == ("FFFSSS", "FFFFFF")
    own, other = dict(model.named_parameters()), dict(twin.named_parameters())
    assert all(other[name].data_ptr() == tensor.data_ptr() for name, tensor in own.items())
    new = [name for name in other if name not in own]
    assert new and all(".indexer." in name for name in new)
    weight = "layers.{}.self_attn.indexer.wk.weight"
    for layer in (3, 4, 5):
        assert torch.equal(other[weight.format(layer)], own[weight.format(2)])
        assert other[weight.format(layer)].data_ptr() != own[weight.format(2)].data_ptr()
    # Where nothing is selected the two are the same model.
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids), twin(ids))


def test_a_model_without_shared_layers_stays_as_it_is() -> None:
    config = all_full(preset("tiny"))
    weights = GlmMoeDsa(config).state_dict()
    assert all_full(config) == config
    same = every_indexer(weights, config.share_plan)
    assert same.keys() == weights.keys() and all(same[name] is weights[name] for name in weights)
