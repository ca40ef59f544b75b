"""GLM-5.2's sparse attention with a shared index: model, checkpoints, caches, engine and training.

The public names below are loaded when first used, so that `import indexshare.config` (and the other rooms of
plain Python) works, and is fast, without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME_OF = {
    "LLM": "indexshare.engine.llm",
    "SamplingParams": "indexshare.engine.params",
    "load_model": "indexshare.checkpoint.load",
    "save_model": "indexshare.checkpoint.load",
    "GlmMoeDsa": "indexshare.model.glm",
    "ModelConfig": "indexshare.config.model",
    "SharePlan": "indexshare.config.share_plan",
}

__all__ = [
    "LLM",
    "GlmMoeDsa",
    "ModelConfig",
    "SamplingParams",
    "SharePlan",
    "__version__",
    "load_model",
    "save_model",
]

if TYPE_CHECKING:
    from indexshare.checkpoint.load import load_model, save_model
    from indexshare.config.model import ModelConfig
    from indexshare.config.share_plan import SharePlan
    from indexshare.engine.llm import LLM
    from indexshare.engine.params import SamplingParams
    from indexshare.model.glm import GlmMoeDsa


def __getattr__(name: str) -> Any:
    """Import a public name from its room the first time it is asked for."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
