"""Search: losses of trials are those of whole passes, answers those of the plain algorithm, with less work."""

import itertools
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from indexshare.cache.view import InFlightView
from indexshare.config.presets import preset
from indexshare.config.share_plan import SharePlan
from indexshare.config.variant import GroupedAttention, Variant
from indexshare.model.glm import GlmMoeDsa
from indexshare.sharing.race import race
from indexshare.sharing.search import (
    beam,
    block_starts,
    greedy,
    layers_to_keep,
    plain_evaluations,
    refine,
    uniform,
)
from indexshare.sharing.similarity import most_similar, similarities
from indexshare.sharing.spellings import spellings
from indexshare.sharing.state_file import StateFile
from indexshare.sharing.trial import Trial, changed
from indexshare.train.losses import token_losses
from tests.unit.sharing.conftest import noisy


@pytest.fixture
def rows() -> Tensor:
    """Four windows of 40 targets."""
    return torch.randint(0, 320, (4, 41), generator=torch.Generator().manual_seed(2))


def under(model: GlmMoeDsa, plan: SharePlan) -> GlmMoeDsa:
    """The model built anew under a plan: without the indexers that it leaves idle."""
    other = GlmMoeDsa(model.config.replace(indexer_types=plan.types))
    wanted = other.state_dict().keys()
    other.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in wanted})
    return other.eval()


@torch.no_grad()
def whole(model: GlmMoeDsa, plan: SharePlan, rows: Tensor) -> list[float]:
    """Loss of each window by passes of a whole model under the plan."""
    other, length = under(model, plan), rows.shape[1] - 1
    hidden = other.trunk(rows[:, :-1].reshape(-1), InFlightView([length] * len(rows)))
    losses = token_losses(hidden, other.lm_head.weight, rows[:, 1:].reshape(-1))
    return losses.double().view(len(rows), -1).mean(1).tolist()


def plain_greedy(model: GlmMoeDsa, rows: Tensor, keep: int) -> list[tuple[str, float]]:
    """The published algorithm as it reads: every candidate of every step, whole."""
    plan, found = model.plan, list[tuple[str, float]]()
    while len(plan.full_layers) > keep:
        candidates = [changed(plan, layer) for layer in plan.full_layers if layer > 0]
        scored = [(sum(whole(model, each, rows)) / len(rows), each) for each in candidates]
        loss, plan = min(scored, key=lambda pair: pair[0])
        found.append((plan.pattern, loss))
    return found


@pytest.mark.parametrize("memory", [2 << 30, 0])
def test_losses_are_those_of_whole_passes(full_model: GlmMoeDsa, rows: Tensor, memory: int) -> None:
    trial, draw = Trial(full_model, rows, memory=memory), random.Random(0)
    for number in range(12):
        plan = SharePlan.from_pattern("F" + "".join(draw.choice("FS") for _ in range(5)))
        if number % 3 == 0:
            trial.rebase(plan)
        assert trial.losses([plan], 0)[0] == whole(full_model, plan, rows), plan.pattern
    assert trial.batches == 1 and trial.windows == 4


def test_batches_split_windows_and_nothing_else(
    full_model: GlmMoeDsa, rows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = Trial(full_model, rows).loss(SharePlan.from_pattern("FSFSSF"))
    monkeypatch.setattr("indexshare.sharing.trial._BATCH_TOKENS", 80)
    apart = Trial(full_model, rows)
    assert apart.batches == 2 and apart.windows_of(1) == 2
    assert apart.loss(SharePlan.from_pattern("FSFSSF")) == pytest.approx(together, abs=1e-6)


@pytest.mark.parametrize("exact", [True, False])
def test_greedy_is_the_plain_algorithm_with_less_work(full_model: GlmMoeDsa, rows: Tensor, exact: bool) -> None:
    trial = Trial(full_model, rows)
    steps = greedy(trial, 2, exact=exact)
    expected = plain_greedy(full_model, rows, 2)
    assert [step.plan.pattern for step in steps[1:]] == [pattern for pattern, _ in expected]
    assert [step.loss for step in steps[1:]] == pytest.approx([loss for _, loss in expected], abs=1e-9)
    assert trial.evaluations < plain_evaluations(6, 2, 6, 4) / 1.5


def test_windows_without_room_cost_time_and_change_nothing(full_model: GlmMoeDsa, rows: Tensor) -> None:
    with_room, without = Trial(full_model, rows), Trial(full_model, rows, memory=0)
    kept, again = (greedy(trial, 3) for trial in (with_room, without))
    assert [step.plan for step in kept] == [step.plan for step in again]
    assert [step.loss for step in kept] == [step.loss for step in again]
    assert without.evaluations > with_room.evaluations


def test_a_stopped_search_goes_on(full_model: GlmMoeDsa, rows: Tensor, tmp_path: Path) -> None:
    expected = greedy(Trial(full_model, rows), 2)
    file = tmp_path / "s.json"

    def stop(done: int) -> None:
        if done > 150:
            raise KeyboardInterrupt

    first = Trial(full_model, rows, state=StateFile(file, {}), progress=stop)
    with pytest.raises(KeyboardInterrupt):
        greedy(first, 2)
    first.keep_now()
    second = Trial(full_model, rows, state=StateFile(file, {}))
    assert second.evaluations == first.evaluations > 150
    assert [(step.plan, step.loss) for step in greedy(second, 2)] == [(step.plan, step.loss) for step in expected]
    fresh = Trial(full_model, rows)
    greedy(fresh, 2)
    assert second.evaluations - first.evaluations < fresh.evaluations - 100
    second.keep_now()
    third = Trial(full_model, rows, state=StateFile(file, {}))
    greedy(third, 2)
    assert third.evaluations == second.evaluations  # everything is known


def test_blocks_keep_their_first_layers(full_model: GlmMoeDsa, rows: Tensor) -> None:
    assert block_starts(78, 8)[:3] == (0, 9, 19) and block_starts(6, 2) == (0, 3)
    steps = greedy(Trial(full_model, rows), 2, blocks=2)
    assert steps[-1].plan.pattern == "FSSFSS"
    sizes = [len(step.standings) for step in steps[1:]]
    assert sizes == [2, 2, 1, 1]
    with pytest.raises(ValueError, match="expected 3 to 5"):
        greedy(Trial(full_model, rows), 2, blocks=3)


def test_swaps_only_lower_the_loss(full_model: GlmMoeDsa, rows: Tensor) -> None:
    trial = Trial(full_model, rows)
    every = [SharePlan.from_pattern("F" + "".join(rest)) for rest in set(itertools.permutations("FFSSS"))]
    losses = {plan.pattern: sum(whole(full_model, plan, rows)) / 4 for plan in every}
    worst = max(every, key=lambda plan: losses[plan.pattern])
    from indexshare.sharing.search import Step

    steps = refine(trial, Step(plan=worst, loss=trial.loss(worst)), available=range(6), exact=True)
    path = [losses[worst.pattern], *(step.loss for step in steps)]
    assert path == sorted(path, reverse=True) and len(path) > 1
    last = steps[-1].plan
    swapped = [
        losses[changed(last, give, take).pattern] for give in last.full_layers[1:] for take in last.shared_layers
    ]
    assert min(swapped) >= steps[-1].loss - 1e-9


def test_a_wide_beam_finds_the_best_plan(full_model: GlmMoeDsa, rows: Tensor) -> None:
    steps = beam(Trial(full_model, rows), 3, width=100)
    every = {"F" + "".join(rest) for rest in itertools.permutations("FFSSS")}
    best = min(every, key=lambda pattern: sum(whole(full_model, SharePlan.from_pattern(pattern), rows)))
    assert steps[-1].plan.pattern == best
    narrow = beam(Trial(full_model, rows), 3, width=1)
    assert [s.plan for s in narrow] == [s.plan for s in greedy(Trial(full_model, rows), 3, exact=True)]


class Sheet:
    """A trial whose losses are written down: one per plan and window."""

    def __init__(self, table: dict[str, list[float]]) -> None:
        self.table, self.asked = table, 0
        self.windows = self.batches = len(next(iter(table.values())))

    def windows_of(self, batches: int) -> int:
        return batches

    def losses(self, plans: list[SharePlan], batch: int) -> list[list[float]]:
        self.asked += len(plans)
        return [[self.table[plan.pattern][batch]] for plan in plans]


def test_a_race_drops_what_is_clearly_worse_and_nothing_else() -> None:
    draw = random.Random(0)
    base = [draw.gauss(3, 0.5) for _ in range(64)]
    offsets = {"FSFF": 0.0, "FFSF": 0.05, "FFFS": 0.0005}
    table = {name: [b + offset + draw.gauss(0, 0.01) for b in base] for name, offset in offsets.items()}
    sheet = Sheet(table)
    plans = [SharePlan.from_pattern(name) for name in table]
    winner, standings = race(sheet, plans)  # type: ignore[arg-type]
    assert winner.pattern == min(table, key=lambda name: sum(table[name]))
    assert {each.pattern: each.windows for each in standings}["FFSF"] == 8
    assert sheet.asked < 3 * 64
    every, _ = race(Sheet(table), plans, exact=True)  # type: ignore[arg-type]
    assert every == winner


def test_what_does_not_matter_is_not_decided() -> None:
    draw = random.Random(1)
    base = [draw.gauss(3, 0.5) for _ in range(64)]
    offsets = {"FSFF": 0.0, "FFSF": -0.0001, "FFFS": 0.02}
    table = {name: [b + offset + draw.gauss(0, 0.001) for b in base] for name, offset in offsets.items()}
    plans = [SharePlan.from_pattern(name) for name in table]
    every, some, none = Sheet(table), Sheet(table), Sheet(table)
    best, _ = race(every, plans)  # type: ignore[arg-type]
    near, _ = race(some, plans, tolerance=0.001)  # type: ignore[arg-type]
    race(none, plans, tolerance=0.001, exact=True)  # type: ignore[arg-type]
    assert best.pattern == min(table, key=lambda name: sum(table[name]))
    assert near.pattern in ("FSFF", "FFSF")
    assert some.asked == 3 * 8 < every.asked < none.asked == 3 * 64
    strict = Sheet(table)
    race(strict, plans, tolerance=1e-6)  # type: ignore[arg-type]
    assert strict.asked == every.asked


def test_the_programme_finds_the_best_sum() -> None:
    for seed in range(5):
        matrix = torch.rand(7, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        values = matrix.tolist()
        for keep in (1, 2, 3, 6, 7):
            found = most_similar(matrix, keep)
            assert len(found.full_layers) == keep

            def total(plan: SharePlan, values: list[list[float]] = values) -> float:
                return sum(values[layer][plan.source(layer)] for layer in plan.shared_layers)

            choices = itertools.combinations(range(1, 7), keep - 1)
            plans = [["F" if n == 0 or n in chosen else "S" for n in range(7)] for chosen in choices]
            best = max(total(SharePlan.from_pattern(plan)) for plan in plans)
            assert total(found) == pytest.approx(best)


def test_similarities_compare_attention_outputs(full_model: GlmMoeDsa, rows: Tensor) -> None:
    found = similarities(full_model, rows[:, :-1])
    assert found.diagonal().tolist() == [1.0] * 6
    assert found[1, 2] == -torch.inf and bool((found.tril() <= 1.0 + 1e-6).all())
    below = found[torch.tril(torch.ones(6, 6), -1).bool()]
    assert float(below.std()) > 0.001 and float(below.max()) < 0.999999


def test_sizes_and_spellings() -> None:
    assert [layers_to_keep(text, 47) for text in ("1/2", "1/4", "12", "0.25")] == [24, 12, 12, 12]
    for bad in ("0", "x", "1/0", "48", "5/4", "-1/4"):
        with pytest.raises(ValueError, match="--keep is"):
            layers_to_keep(bad, 47)
    assert uniform(13, 4).pattern == "FSSFSSFSSFSSS"
    glm = spellings(SharePlan.uniform(78, every=4, offset=3))
    assert glm["index_topk_freq"] == 4 and glm["index_skip_topk_offset"] == 3
    searched = spellings(SharePlan.from_pattern("FSFFS"))
    assert "index_topk_freq" not in searched
    assert searched["indexer_types"] == ["full", "shared", "full", "full", "shared"]
    assert searched["vllm"] == '--hf-overrides \'{"use_index_cache": true, "index_topk_pattern": "FSFFS"}\''
    assert searched["sglang"] == '--json-model-override-args \'{"index_topk_pattern": "FSFFS"}\''


def test_nothing_to_search_is_said(sharing_model: GlmMoeDsa, full_model: GlmMoeDsa, rows: Tensor) -> None:
    one = under(full_model, SharePlan.from_pattern("FSSSSS"))
    with pytest.raises(ValueError, match="has one indexer, so there is nothing to search"):
        greedy(Trial(one, rows), 1)
    with pytest.raises(ValueError, match="--keep is 3 layers; expected 1 to 2: the model has 3 indexers"):
        greedy(Trial(sharing_model, rows), 3)
    steps = greedy(Trial(sharing_model, rows), 1)
    assert steps[-1].plan.pattern == "FSSSSS"


def test_grouped_attention_is_searched_too(rows: Tensor) -> None:
    attention = GroupedAttention(kv_heads=2, head_dim=12)
    config = preset("tiny").replace(
        vocab_size=320, num_attention_heads=16, variant=Variant(attention=attention), indexer_types=("full",) * 6
    )
    model = noisy(config)
    trial, plan = Trial(model, rows), SharePlan.from_pattern("FSFFSF")
    assert trial.losses([plan], 0)[0] == whole(model, plan, rows)
