"""Small checkpoints to break: a random model, and its files as a dictionary to change and write back."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from indexshare import GlmMoeDsa, ModelConfig, save_model
from indexshare.checkpoint.names import expert_tensors
from indexshare.checkpoint.tensor_files import SINGLE_FILE
from indexshare.config.presets import preset

Tensors = dict[str, torch.Tensor]


def tiny_config(**changes: object) -> ModelConfig:
    """Four layers F F S F, one of them dense, four experts, a draft layer."""
    small = {
        "num_hidden_layers": 4,
        "indexer_types": ("full", "full", "shared", "full"),
        "mlp_layer_types": ("dense", "sparse", "sparse", "sparse"),
        "n_routed_experts": 4,
        "dtype": "float32",
    }
    return preset("tiny").replace(**(small | changes))


@torch.no_grad()
def random_model(config: ModelConfig | None = None, seed: int = 0) -> GlmMoeDsa:
    """A model without any weight at its neutral value."""
    model = GlmMoeDsa(config or tiny_config())
    generator = torch.Generator().manual_seed(seed)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model.eval()


def saved(folder: Path, model: GlmMoeDsa | None = None) -> Path:
    """A checkpoint of a random float32 model in one file."""
    save_model(model or random_model(), folder)
    return folder


def change(folder: Path, edit: Callable[[Tensors], object]) -> None:
    """Rewrite the single weight file after `edit` has changed the dictionary of its tensors."""
    tensors = load_file(folder / SINGLE_FILE)
    edit(tensors)
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})


def to_stacked(tensors: Tensors, config: ModelConfig) -> None:
    """Replace every per-expert tensor by the stacked form."""
    for layer in range(config.num_layers_with_draft):
        for whole in expert_tensors(config, layer, "stacked"):
            stack = torch.empty(whole.shape)
            for spec in expert_tensors(config, layer, "per_expert"):
                if spec.ours == whole.ours:
                    stack[spec.index] = tensors.pop(spec.public)
            tensors[whole.public] = stack


def assert_same_weights(one: GlmMoeDsa, other: GlmMoeDsa) -> None:
    """Bit for bit, and of the same type."""
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name
