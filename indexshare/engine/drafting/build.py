"""From the user's settings to what the engine drafts with; mistakes are refused in one line."""

from __future__ import annotations

import warnings
from typing import Any, Literal

from indexshare.cache.paged import PagedCache
from indexshare.config import ModelConfig
from indexshare.config.arguments import as_integer
from indexshare.engine.drafting.base import MOST_DRAFTS, Drafter
from indexshare.engine.drafting.layer import LayerDrafter
from indexshare.engine.drafting.lookup import LookupDrafter
from indexshare.engine.drafting.policy import Fixed, Measured
from indexshare.engine.drafting.rounds import Drafting
from indexshare.model.glm import GlmMoeDsa

DraftTokens = int | Literal["auto"]
DRAFTERS = ("lookup", "mtp", "both")


def check(draft_tokens: Any, drafter: Any) -> DraftTokens:
    """The number of drafts.

    Raises:
        ValueError: it is none, or the drafter is unknown.
    """
    if drafter not in DRAFTERS:
        raise ValueError(f"drafter is {drafter!r}; expected one of {', '.join(DRAFTERS)}")
    if isinstance(draft_tokens, str) and draft_tokens == "auto":
        return "auto"
    hint = ', or "auto" for as many as pay; 0 drafts nothing'
    return as_integer("draft_tokens", draft_tokens, low=0, high=MOST_DRAFTS, hint=hint)


def fitting(draft_tokens: DraftTokens, drafter: str, config: ModelConfig) -> str:
    """The drafter for a model: where it has no draft layer, both are lookups alone, with a warning.

    Raises:
        ValueError: the draft layer alone was asked for, and there is none.
    """
    if draft_tokens == 0 or drafter == "lookup" or config.num_nextn_predict_layers:
        return drafter
    missing = "the model has no draft layer (num_nextn_predict_layers is 0)"
    if drafter == "mtp":
        raise ValueError(f'drafter is "mtp", but {missing}; use drafter="lookup"')
    warnings.warn(f"{missing}; drafts come from lookups alone", stacklevel=3)
    return "lookup"


def uses_layer(draft_tokens: DraftTokens, drafter: str) -> bool:
    """Whether the draft layer runs, which then has streams of its own in the cache."""
    return draft_tokens != 0 and drafter != "lookup"


def build(
    draft_tokens: DraftTokens, drafter: str, model: GlmMoeDsa, cache: PagedCache, *, full_attention_below: int = 0
) -> Drafting | None:
    """What checked settings ask for; None for no drafts."""
    if draft_tokens == 0:
        return None
    drafters: list[Drafter] = [LookupDrafter()] if drafter != "mtp" else []
    if drafter != "lookup":
        drafters.append(LayerDrafter(model, cache, full_attention_below=full_attention_below))
    return Drafting(drafters, Measured() if draft_tokens == "auto" else Fixed(draft_tokens))
