"""Small checkpoints to export, with every weight away from its neutral value and exact in bfloat16."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from indexshare import GlmMoeDsa, ModelConfig, load_model, save_model
from indexshare.checkpoint.tensor_files import SINGLE_FILE
from indexshare.config.presets import preset


def config_of(**changes: object) -> ModelConfig:
    """Layers F F S F, one of them dense, four experts, a draft layer; sixteen index heads, so that scores differ."""
    small = {
        "num_hidden_layers": 4,
        "indexer_types": ("full", "full", "shared", "full"),
        "mlp_layer_types": ("dense", "sparse", "sparse", "sparse"),
        "n_routed_experts": 4,
        "index_n_heads": 16,
    }
    return preset("tiny").replace(**(small | changes))


@torch.no_grad()
def saved(folder: Path, config: ModelConfig, dtype: str = "bfloat16") -> GlmMoeDsa:
    """Write a random checkpoint and return it as it loads, in float32."""
    model = GlmMoeDsa(config).initialise(seed=0)
    generator = torch.Generator().manual_seed(1)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.dim() == 1:
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.2)
    save_model(model, folder, dtype=dtype)
    return load_model(folder, dtype="float32")


def stack_experts(folder: Path, config: ModelConfig) -> None:
    """Rewrite a checkpoint with its routed experts in the stacked form."""
    tensors = load_file(folder / SINGLE_FILE)
    for layer in range(config.num_layers_with_draft):
        if config.is_moe(layer):
            prefix = f"model.layers.{layer}.mlp.experts."

            def taken(matrix: str, prefix: str = prefix) -> torch.Tensor:
                parts = [tensors.pop(f"{prefix}{e}.{matrix}_proj.weight") for e in range(config.n_routed_experts)]
                return torch.stack(parts)

            tensors[f"{prefix}gate_up_proj"] = torch.cat((taken("gate"), taken("up")), dim=1)
            tensors[f"{prefix}down_proj"] = taken("down")
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
