"""Configuration: what a model is, and which of its layers run the indexer. Plain Python, no torch."""

from indexshare.config import grouped as _grouped  # noqa: F401  registers the kind
from indexshare.config import mla as _mla  # noqa: F401  registers the kind
from indexshare.config.model import ModelConfig
from indexshare.config.presets import PRESETS, preset
from indexshare.config.rope import RopeParameters
from indexshare.config.share_plan import SharePlan

__all__ = ["PRESETS", "ModelConfig", "RopeParameters", "SharePlan", "preset"]
