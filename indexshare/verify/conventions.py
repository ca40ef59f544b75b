"""What an implementation can get wrong, one switch each, and the list of hypotheses that `verify` tries.

Most of these are invisible in short texts: while a query sees at most `index_topk` tokens, all of them are attended
and nothing that steers the choice matters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from indexshare.config.model import ModelConfig

NO_SELECTION = 1 << 60


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """How `verify.forward` computes a model. The defaults are right; `Hypothesis` changes one or two.

    Attributes:
        attention_rope: layout of the rotary pairs in queries and the latent's key.
        indexer_rope: likewise in the indexer; `"config"` is what `indexer_rope_interleave` says, `"none"` no rotation.
        rope_theta: base in place of the configuration's.
        sharing: `"plan"`; `"ignored"`: a Shared layer chooses by itself, with its Full layer's indexer;
            `"early"`, `"late"`: the schedule is counted one layer from where it should be.
        norm_eps: of the two norms around each layer and the last one; `latent_eps`: of MLA's inner norms.
        key_norm: kind of the index keys' norm; `key_eps`: its epsilon.
        score_type: in which head weights and scores are rounded.
        relu: the index dot products' rectifier.
        head_weights: `"learned"`; `"ones"`: heads are summed unweighted; `"softmax"`: weights normalised over heads.
        topk: of the selection, in place of the configuration's; `NO_SELECTION` attends to everything.
        softmax_width: what the attention scale is the inverse root of.
        expert_scores: `"sigmoid"` or `"softmax"`.
        biased_weights: the correction bias also counts in the weights of the chosen experts.
        ignore_bias: experts are chosen without the correction bias.
        normalise, routed_scale, groups: in place of the configuration's.
        shared_experts: whether they are added.
        draft_halves: `"embedding first"` or `"hidden first"` in the draft layer's input.
        draft_hidden: the trunk's state that the draft layer reads, after the final norm or before it.
        draft_norm: whether the draft layer's output is normalised before the head.
    """

    attention_rope: Literal["interleaved", "half"] = "interleaved"
    indexer_rope: Literal["config", "flipped", "none"] = "config"
    rope_theta: float | None = None
    sharing: Literal["plan", "ignored", "early", "late"] = "plan"
    norm_eps: float | None = None
    latent_eps: float | None = None
    key_norm: Literal["layer", "rms", "none"] = "layer"
    key_eps: float = 1e-6
    score_type: Literal["float32", "bfloat16"] = "float32"
    relu: bool = True
    head_weights: Literal["learned", "ones", "softmax"] = "learned"
    topk: int | None = None
    softmax_width: Literal["head", "nope", "latent"] = "head"
    expert_scores: Literal["sigmoid", "softmax"] = "sigmoid"
    biased_weights: bool = False
    ignore_bias: bool = False
    normalise: bool | None = None
    routed_scale: float | None = None
    groups: int | None = None
    shared_experts: bool = True
    draft_halves: Literal["embedding first", "hidden first"] = "embedding first"
    draft_hidden: Literal["after norm", "before norm"] = "after norm"
    draft_norm: bool = True


RIGHT = Conventions()


def _always(config: ModelConfig) -> bool:
    return True


def _has_shared(config: ModelConfig) -> bool:
    return bool(config.share_plan.shared_layers)


def _has_experts(config: ModelConfig) -> bool:
    return any(config.is_moe(layer) for layer in range(config.num_hidden_layers))


def _has_draft(config: ModelConfig) -> bool:
    return bool(config.num_nextn_predict_layers)


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One thing that another program may do differently.

    Attributes:
        name: short, for tables and JSON.
        says: one sentence for people, with the fix.
        change: fields of `Conventions`.
        applies: whether it makes a difference to a model of this configuration at all.
        place: what it can be seen in: `"selection"` only beyond `index_topk` tokens, `"trunk"` always, `"draft"` in
            the draft layer's predictions only.
    """

    name: str
    says: str
    change: dict[str, object]
    applies: Callable[[ModelConfig], bool] = _always
    place: Literal["selection", "trunk", "draft"] = "trunk"

    def on(self, conventions: Conventions) -> Conventions:
        """These conventions with this change."""
        return dataclasses.replace(conventions, **self.change)  # type: ignore[arg-type]


def _other_theta(theta: float) -> Callable[[ModelConfig], bool]:
    return lambda config: config.rope_parameters.rope_theta != theta


def _other_eps(eps: float) -> Callable[[ModelConfig], bool]:
    return lambda config: config.rms_norm_eps != eps


_SELECTION = (
    Hypothesis(
        name="indexer-rope-layout",
        says="the indexer rotates the other pairs than `indexer_rope_interleave` says (GLM: neighbours, DeepSeek-V3.2: "
        "halves)",
        change={"indexer_rope": "flipped"},
        place="selection",
    ),
    Hypothesis(
        name="indexer-rope-missing",
        says="the indexer's queries and keys are not rotated",
        change={"indexer_rope": "none"},
        place="selection",
    ),
    Hypothesis(
        name="sharing-ignored",
        says="Shared layers choose tokens by themselves instead of taking the last Full layer's choice",
        change={"sharing": "ignored"},
        applies=_has_shared,
        place="selection",
    ),
    Hypothesis(
        name="share-offset-early",
        says="the share schedule is counted one layer too early (`index_skip_topk_offset`)",
        change={"sharing": "early"},
        applies=_has_shared,
        place="selection",
    ),
    Hypothesis(
        name="share-offset-late",
        says="the share schedule is counted one layer too late (`index_skip_topk_offset`)",
        change={"sharing": "late"},
        applies=_has_shared,
        place="selection",
    ),
    Hypothesis(
        name="key-norm-rms",
        says="the index keys go through an RMS norm; it is a LayerNorm with mean and bias",
        change={"key_norm": "rms"},
        place="selection",
    ),
    Hypothesis(
        name="key-norm-missing",
        says="the index keys are not normalised",
        change={"key_norm": "none"},
        place="selection",
    ),
    Hypothesis(
        name="relu-missing",
        says="the index dot products are summed over heads without the ReLU",
        change={"relu": False},
        place="selection",
    ),
    Hypothesis(
        name="head-weights-missing",
        says="index heads are summed without their learned weights",
        change={"head_weights": "ones"},
        place="selection",
    ),
    Hypothesis(
        name="head-weights-softmax",
        says="the index head weights go through a softmax; they are used as they are and may be negative",
        change={"head_weights": "softmax"},
        place="selection",
    ),
    Hypothesis(
        name="score-precision",
        says="index head weights and scores are rounded to bfloat16, which decides near ties (keep float32)",
        change={"score_type": "bfloat16"},
        place="selection",
    ),
    Hypothesis(
        name="dense-fallback",
        says="all tokens are attended at any length: the indexer is not run",
        change={"topk": NO_SELECTION},
        place="selection",
    ),
)
_TRUNK = (
    Hypothesis(
        name="attention-rope-layout",
        says="the attention rotates halves of its rotary part; pairs are neighbours",
        change={"attention_rope": "half"},
    ),
    *(
        Hypothesis(
            name=f"rope-theta-{theta:.0e}".replace("e+0", "e"),
            says=f"the rotary base is {theta:,.0f}, not the configuration's (GLM-5.2 nests it under `rope_parameters`)",
            change={"rope_theta": theta},
            applies=_other_theta(theta),
        )
        for theta in (1e4, 1e6, 8e6)
    ),
    *(
        Hypothesis(
            name=f"norm-eps-{eps:.0e}".replace("e-0", "e-"),
            says=f"the layers' norms use an epsilon of {eps:g}, not `rms_norm_eps`",
            change={"norm_eps": eps},
            applies=_other_eps(eps),
        )
        for eps in (1e-6, 1e-5)
    ),
    Hypothesis(
        name="latent-norm-eps-1e-5",
        says="the norms inside the latent attention use an epsilon of 1e-5; it is fixed at 1e-6",
        change={"latent_eps": 1e-5},
    ),
    Hypothesis(
        name="softmax-scale-nope",
        says="attention logits are scaled by the width without the rotary part",
        change={"softmax_width": "nope"},
    ),
    Hypothesis(
        name="softmax-scale-latent",
        says="attention logits are scaled by the width of the latent row",
        change={"softmax_width": "latent"},
    ),
    Hypothesis(
        name="expert-bias-as-weight",
        says="the correction bias is part of the experts' weights; it takes part in the choice only",
        change={"biased_weights": True},
        applies=_has_experts,
    ),
    Hypothesis(
        name="expert-bias-ignored",
        says="experts are chosen without the correction bias",
        change={"ignore_bias": True},
        applies=_has_experts,
    ),
    Hypothesis(
        name="routed-scale-missing",
        says="the routed experts' sum is not multiplied by `routed_scaling_factor`",
        change={"routed_scale": 1.0},
        applies=lambda config: _has_experts(config) and config.routed_scaling_factor != 1.0,
    ),
    Hypothesis(
        name="expert-weights-normalised",
        says="`norm_topk_prob` is taken as true",
        change={"normalise": True},
        applies=lambda config: _has_experts(config) and not config.norm_topk_prob,
    ),
    Hypothesis(
        name="expert-weights-not-normalised",
        says="the chosen experts' weights are not divided by their sum (`norm_topk_prob`)",
        change={"normalise": False},
        applies=lambda config: _has_experts(config) and config.norm_topk_prob,
    ),
    Hypothesis(
        name="expert-groups-ignored",
        says="experts are chosen from all groups (`n_group`, `topk_group`)",
        change={"groups": 1},
        applies=lambda config: _has_experts(config) and config.topk_group < config.n_group,
    ),
    Hypothesis(
        name="expert-softmax",
        says="router scores go through a softmax; they are sigmoids",
        change={"expert_scores": "softmax"},
        applies=_has_experts,
    ),
    Hypothesis(
        name="shared-experts-missing",
        says="the shared experts are left out",
        change={"shared_experts": False},
        applies=lambda config: _has_experts(config) and config.n_shared_experts > 0,
    ),
)
_DRAFT = (
    Hypothesis(
        name="draft-halves-swapped",
        says="the draft layer's input has the hidden state first; the embedding comes first",
        change={"draft_halves": "hidden first"},
        applies=_has_draft,
        place="draft",
    ),
    Hypothesis(
        name="draft-hidden-before-norm",
        says="the draft layer reads the trunk's state before the final norm; it reads it after",
        change={"draft_hidden": "before norm"},
        applies=_has_draft,
        place="draft",
    ),
    Hypothesis(
        name="draft-norm-missing",
        says="the draft layer's output is not normalised before the head (`shared_head.norm`)",
        change={"draft_norm": False},
        applies=_has_draft,
        place="draft",
    ),
)
HYPOTHESES: tuple[Hypothesis, ...] = (*_SELECTION, *_TRUNK, *_DRAFT)


def hypotheses_for(config: ModelConfig, *, draft: bool) -> list[Hypothesis]:
    """Those that can make a difference to a model; `draft`: the draft layer's predictions are compared too."""
    return [h for h in HYPOTHESES if h.applies(config) and (draft or h.place != "draft")]
