"""Which convention explains another program's numbers: our own model is run with each, and the nearest one named.

Three places are looked at in turn, so that two faults in different places do not hide each other: the first tokens,
which all layers attend to in full and which only the trunk's conventions reach; the tokens beyond `index_topk`, which
the selection reaches too; and the draft layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from indexshare.verify.conventions import RIGHT, Conventions, Hypothesis, hypotheses_for
from indexshare.verify.forward import PlainForward, Trace
from indexshare.verify.layers import LayerDifference, compare_layers
from indexshare.verify.observation import Observation, of_tokens
from indexshare.verify.probe import check_length

# Root mean square differences of log-probabilities that rounding alone makes, by the other program's type; measured on
# the shipped models (docs/LOG.md), with room.
TOLERANCES = {"float64": 1e-4, "float32": 1e-5, "bfloat16": 0.3, "float16": 0.05, "q8_0": 0.3, "fp8": 0.5}
_SHORT = 64  # tokens that decide about the trunk
_EXPLAINED = 0.2  # of the difference may be left by a hypothesis that counts as an explanation
_CLEARLY = 0.5  # a pair must leave less than this part of what the best single one leaves
_LAYER = 1e-4  # relative difference of a layer in float32 that is rounding
_FEW = 24  # single hypotheses whose pairs are tried


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One or more hypotheses together, and the difference that is left under them."""

    names: tuple[str, ...]
    difference: float


@dataclass(kw_only=True)
class Diagnosis:
    """What was found.

    Attributes:
        program, precision, tolerance: of the observation.
        tokens, index_topk: compared, and what a query selects.
        difference: root mean square of the log-probabilities' differences, under the right conventions.
        found: hypotheses that explain it; none where there is nothing to explain, or nothing explains it.
        left: difference under them.
        margin: of the choices in this text (`Trace.margin`).
        layers: each layer by itself, where the program can be looked into.
        attempts: what was tried, the best first.
    """

    program: str
    precision: str
    tolerance: float
    tokens: int
    index_topk: int
    difference: float
    found: list[Hypothesis] = field(default_factory=list)
    left: float = 0.0
    margin: float = 1.0
    layers: list[LayerDifference] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """`"same"`, `"explained"`, `"partly explained"` or `"unexplained"`."""
        if self.difference <= self.tolerance:
            return "same"
        if not self.found:
            return "unexplained"
        return "explained" if self.left <= max(self.tolerance, _EXPLAINED * self.difference) else "partly explained"

    @property
    def layer_tolerance(self) -> float:
        """Relative difference of a layer that counts as rounding."""
        return max(self.tolerance, _LAYER)

    @property
    def first_layer(self) -> int | None:
        """The first layer that differs by itself."""
        return next((one.layer for one in self.layers if one.apart(self.layer_tolerance)), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "program": self.program,
            "verdict": self.verdict,
            "difference": self.difference,
            "tolerance": self.tolerance,
            "left": self.left,
            "tokens": self.tokens,
            "index_topk": self.index_topk,
            "margin": self.margin,
            "first_layer": self.first_layer,
            "layers": [one.to_dict() for one in self.layers],
            "found": [{"name": h.name, "says": h.says} for h in self.found],
            "attempts": [{"names": list(a.names), "difference": a.difference} for a in self.attempts],
        }


class Diagnostician:
    """Tries hypotheses on one observation.

    Args:
        forward: the model, computed under any conventions.
        observation: the other program's numbers; its text is longer than `index_topk` by 12 tokens or more.
        tolerance: difference that counts as rounding; by default from the observation's precision.
        progress: told after each pass: how many are done, and how many are planned so far.

    Raises:
        ValueError: a text too short to show the selection, ids outside the vocabulary, log-probabilities that are
            not finite, or an unknown precision.
    """

    def __init__(
        self,
        forward: PlainForward,
        observation: Observation,
        *,
        tolerance: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        config = forward.config
        if observation.precision not in TOLERANCES and tolerance is None:
            raise ValueError(f"precision is {observation.precision!r}; expected one of {', '.join(TOLERANCES)}")
        if max(observation.token_ids) >= config.vocab_size:
            raise ValueError(
                f"token id {max(observation.token_ids)} is outside the vocabulary of {config.vocab_size}; the text was "
                "made for another model"
            )
        check_length(config, len(observation.token_ids))
        if observation.shows_draft and not config.num_nextn_predict_layers:
            raise ValueError(
                f"{observation.program} gives predictions of a draft layer, and the model has none; leave out its "
                "draft_logprobs"
            )
        if not bool(observation.logprobs.isfinite().all()):
            raise ValueError(f"{observation.program} gave log-probabilities that are not finite numbers")
        self._forward, self._observation, self._progress = forward, observation, progress
        self._ids = torch.tensor(observation.token_ids)
        self._short = min(config.index_topk, _SHORT, len(self._ids))
        self._tolerance = TOLERANCES[observation.precision] if tolerance is None else tolerance
        self._done, self._planned = 0, 1

    def diagnose(self) -> Diagnosis:
        """Compare, and explain what differs."""
        observation, draft = self._observation, self._observation.shows_draft
        trace = self._run(RIGHT, len(self._ids), draft)
        if not bool(trace.logits.isfinite().all()):
            raise ValueError("the model's own logits are not finite numbers: check the directory by itself first")
        found = Diagnosis(
            program=observation.program, precision=observation.precision, tolerance=self._tolerance,
            tokens=len(self._ids), index_topk=self._forward.config.index_topk, difference=self._difference(trace),
            margin=trace.margin, layers=compare_layers(self._forward, observation.layers or ()),
        )  # fmt: skip
        found.left = found.difference
        if found.difference <= self._tolerance:
            return found
        known = hypotheses_for(self._forward.config, draft=draft)
        trunk = [h for h in known if h.place == "trunk"]
        how = self._explain(found, RIGHT, trunk, self._short, drafting=False)
        rest = [h for h in known if h.place == "selection"] + self._left_over(found, how, trunk)
        how = self._explain(found, how, rest, len(self._ids), drafting=False)
        if draft:
            drafting = [h for h in known if h.place == "draft"]
            how = self._explain(found, how, drafting, len(self._ids), drafting=True)
        found.left = self._difference(self._run(how, len(self._ids), draft))
        found.attempts.sort(key=lambda attempt: attempt.difference)
        return found

    def _left_over(self, found: Diagnosis, how: Conventions, trunk: Sequence[Hypothesis]) -> list[Hypothesis]:
        """Of the trunk's conventions those that may still explain something: where the first tokens agree, each that
        would change them is refuted, which spares its pairs.
        """
        left = [h for h in trunk if h not in found.found]
        if self._difference(self._run(how, self._short, False)) > self._tolerance:
            return left
        self._planned = self._done + len(left)
        return [h for h in left if self._difference(self._run(h.on(how), self._short, False)) <= self._tolerance]

    def _explain(
        self, found: Diagnosis, how: Conventions, candidates: Sequence[Hypothesis], length: int, *, drafting: bool
    ) -> Conventions:
        """Add to `found` the one or two candidates that explain what differs in the first `length` tokens."""
        before = self._difference(self._run(how, length, drafting), drafting=drafting)
        if before <= self._tolerance:
            return how
        singles = self._try(found, how, [(h,) for h in candidates], length, drafting)
        best = singles[0]
        if best[0] > max(self._tolerance, _EXPLAINED * before) or best[0] > 10 * self._tolerance:
            some = [hypotheses[0] for _, hypotheses in singles[:_FEW]]
            pairs = self._try(found, how, list(itertools.combinations(some, 2)), length, drafting)
            if pairs and pairs[0][0] < _CLEARLY * best[0]:
                best = pairs[0]
        if best[0] > max(self._tolerance, _EXPLAINED * before):
            return how
        for hypothesis in best[1]:
            found.found.append(hypothesis)
            how = hypothesis.on(how)
        return how

    def _try(
        self, found: Diagnosis, how: Conventions, sets: Sequence[tuple[Hypothesis, ...]], length: int, drafting: bool
    ) -> list[tuple[float, tuple[Hypothesis, ...]]]:
        """Each set of hypotheses with the difference it leaves, the smallest first."""
        results = []
        self._planned = self._done + len(sets)
        for hypotheses in sets:
            changed = how
            for hypothesis in hypotheses:
                changed = hypothesis.on(changed)
            left = self._difference(self._run(changed, length, drafting), drafting=drafting)
            results.append((left, hypotheses))
            if length == len(self._ids):
                found.attempts.append(Attempt(names=tuple(h.name for h in hypotheses), difference=left))
        return sorted(results, key=lambda result: result[0])

    def _run(self, how: Conventions, length: int, draft: bool) -> Trace:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, max(self._done, self._planned))
        return self._forward(self._ids[:length], how, draft=draft)

    def _difference(self, trace: Trace, *, drafting: bool = False) -> float:
        """Root mean square over what both sides show, of as many tokens as the trace has."""
        observation, rows = self._observation, trace.logits.log_softmax(-1)
        length = len(rows)
        parts = []
        if observation.rows is not None:
            parts.append(_rms(observation.rows[:length] - rows))
        else:
            parts.append(_rms(observation.logprobs[: length - 1] - of_tokens(rows, observation.token_ids[:length])))
        if observation.shows_draft and trace.draft_logits is not None:
            drafts = self._draft_difference(trace.draft_logits.log_softmax(-1), length)
            parts = [drafts] if drafting else [max(parts[0], drafts)]
        return parts[0]

    def _draft_difference(self, rows: Tensor, length: int) -> float:
        """The same over the draft layer's first step, whose rows are `[length - 1, V]`."""
        observation = self._observation
        if observation.draft_rows is not None:
            return _rms(observation.draft_rows[: length - 1] - rows)
        assert observation.draft_logprobs is not None
        given = of_tokens(rows, observation.token_ids[1:length])
        return _rms(observation.draft_logprobs[: length - 2] - given)


def _rms(difference: Tensor) -> float:
    return float(difference.double().square().mean().sqrt())
