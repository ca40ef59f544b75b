"""Multi-head latent attention as rows of the table of layers. Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1."""

from __future__ import annotations

from indexshare.config.layers import AttentionKind, Stream, register_attention
from indexshare.config.model import ModelConfig

LATENTS = "latents"


def _streams(config: ModelConfig) -> tuple[Stream, ...]:
    """One row for all heads: normalised latent, then the rotated key."""
    return (Stream(name=LATENTS, width=config.latent_dim, precise=config.qk_rope_head_dim),)


register_attention(AttentionKind(name="mla", streams=_streams))
