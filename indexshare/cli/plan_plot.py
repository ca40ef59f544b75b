"""The picture of `indexshare plan --plot`: operations per token and cache bytes by context."""

from __future__ import annotations

from pathlib import Path

from indexshare.config import ModelConfig
from indexshare.planner.claims import without_sharing
from indexshare.planner.flops import token_flops
from indexshare.planner.formats import stream_row_bytes
from indexshare.planner.memory import cache_bytes_per_token


def check(path: Path) -> None:
    """Refuse (ValueError) now a picture that could not be drawn later."""
    from indexshare.eval.plots import check_picture

    check_picture(path)


def draw(model: str, config: ModelConfig, path: Path) -> None:
    """Two panels, both axes logarithmic: with and without index sharing, and each way to store the cache."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    contexts = [1 << n for n in range(10, 21) if 1 << n <= config.max_position_embeddings]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, shown in (("as it is", config), ("an indexer in every layer", without_sharing(config))):
        left.plot(contexts, [token_flops(shown, n).total / 1e9 for n in contexts], label=name)
    full = [token_flops(config, n, full_attention=True).total / 1e9 for n in contexts]
    left.plot(contexts, full, label="full attention", linestyle=":")
    for cache in ("bf16", "fp8"):
        size = cache_bytes_per_token(config, row_bytes=lambda s, c=cache: stream_row_bytes(s, c))  # type: ignore[misc]
        right.plot(contexts, [size * n / 2**30 for n in contexts], label=cache)
    for axes, title, unit in ((left, "Operations for one token", "10⁹"), (right, "Cache", "GiB")):
        axes.set(xscale="log", yscale="log", xlabel="tokens of context", ylabel=unit, title=f"{title}, {model}")
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)
