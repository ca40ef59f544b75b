"""Needles and recall: texts as in training, exact scoring, and the floor that recent tokens give."""

import random
import re

import pytest
import torch

from indexshare.config import preset
from indexshare.data.tasks import retrieval_text
from indexshare.eval import retrieval
from indexshare.eval.forward import ATTENTION, FULL, RECENT, SELECTION, batches, hidden_states
from indexshare.eval.retrieval import evaluate_retrieval, needle_probes, recall_probes
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import Tokenizer
from tests.tolerance import TOL
from tests.unit.eval.fakes import Answerer, FakeModel

DEPTHS = [0.1, 0.3, 0.5, 0.7, 0.9]


@pytest.mark.parametrize("make", [needle_probes, recall_probes])
@pytest.mark.parametrize("length", [700, 1500])
def test_texts_hold_their_answers_at_their_depths(
    make: retrieval.ProbeMaker, length: int, task_tokenizer: Tokenizer
) -> None:
    found = set()
    for probe in make(task_tokenizer, random.Random(0), length, DEPTHS):
        assert length - 40 < len(probe.ids) <= length
        text = task_tokenizer.decode(probe.ids)
        assert probe.ids == task_tokenizer.encode(text, parse_special=False), "pieces meet at token borders"
        body = min(text.rindex("\n", 0, len(task_tokenizer.decode(probe.ids[: q.start]))) for q in probe.questions)
        for question in probe.questions:
            answer = task_tokenizer.decode(probe.ids[question.start : question.stop])
            before = task_tokenizer.decode(probe.ids[: question.start])
            (asked,) = re.findall(r"assert (.*) == $", before)
            key = re.sub(r"settings\['(\w+)'\]", r"'\1': ", asked) if "[" in asked else f"\n{asked} = "
            assert answer.isdigit() and before.count(key) == 1 and key + answer in before
            place, all_of_it = (
                len(task_tokenizer.encode(text[:end], parse_special=False)) for end in (text.index(key), body)
            )
            assert place / all_of_it == pytest.approx(DEPTHS[question.depth], abs=0.11)
            found.add(question.depth)
    assert found == set(range(len(DEPTHS)))


def test_the_form_is_that_of_training(task_tokenizer: Tokenizer) -> None:
    """Same statements in the same spelling: only the seed and the order of questions differ."""
    training = "\n".join(retrieval_text(1, index, 700) for index in range(12))
    for probe in (
        needle_probes(task_tokenizer, random.Random(1), 900, DEPTHS),
        recall_probes(task_tokenizer, random.Random(1), 900, DEPTHS),
    ):
        lines = task_tokenizer.decode(probe[0].ids).splitlines()
        shapes = {re.sub(r"[A-Za-z_]+", "w", re.sub(r"\d+", "0", line)) for line in lines}
        known = {re.sub(r"[A-Za-z_]+", "w", re.sub(r"\d+", "0", line)) for line in training.splitlines()}
        assert shapes <= known


@pytest.mark.parametrize("task", ["needle", "recall"])
def test_a_model_that_copies_answers_everything(task: str, task_tokenizer: Tokenizer) -> None:
    model = Answerer(task_tokenizer)
    report = evaluate_retrieval(model, task_tokenizer, task, lengths=[450], depths=5, samples=2)
    assert report.asked == ((2, 2, 2, 2, 2),)
    assert report.right[SELECTION] == report.right[FULL] == report.asked
    assert report.accuracy(SELECTION, 450).value == 1.0 and report.worst_depth(SELECTION, 450) == 1.0
    recent = report.right[RECENT][0]
    assert recent[:4] == (0, 0, 0, 0), "64 tokens do not reach back to 70 % of 450"


@pytest.mark.parametrize("task", ["needle", "recall"])
def test_a_silent_model_answers_nothing(task: str, task_tokenizer: Tokenizer) -> None:
    calls: list[tuple[int, int]] = []
    report = evaluate_retrieval(
        FakeModel(task_tokenizer), task_tokenizer, task, lengths=[450, 500], depths=3, samples=1, attention=[SELECTION],
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert report.right == {SELECTION: ((0, 0, 0), (0, 0, 0))} and report.lengths == (450, 500)
    assert calls[-1][0] == calls[-1][1] and len(calls) == 2


def test_seeds_make_the_texts(task_tokenizer: Tokenizer) -> None:
    probes = [retrieval._probes("needle", task_tokenizer, 500, DEPTHS, samples=2, seed=seed) for seed in (0, 0, 1)]
    assert probes[0] == probes[1] != probes[2]


@torch.no_grad()
def test_the_recent_baseline_sees_recent_tokens_only() -> None:
    """A change of the first token reaches, through every layer, no further than the layers' windows together."""
    config = preset("tiny").replace(index_topk=8)
    model = GlmMoeDsa(config).initialise(0).eval()
    ids = torch.randint(0, config.vocab_size, (120,)).tolist()
    changed = [(ids[0] + 1) % config.vocab_size, *ids[1:]]
    reach = config.num_hidden_layers * (config.index_topk - 1)
    assert reach < 100
    moved = {}
    for kind in ATTENTION:
        before, after = hidden_states(model, [ids], kind)[0], hidden_states(model, [changed], kind)[0]
        # Rounding alone differs everywhere: experts take other rows together when one token goes elsewhere.
        moved[kind] = ((before - after).abs() > TOL["logits between forms", "float32"].atol).any(-1).nonzero()[:, 0]
    assert int(moved[RECENT].max()) <= reach
    assert int(moved[FULL].max()) == 119
    assert not torch.equal(hidden_states(model, [ids], RECENT)[0], hidden_states(model, [ids])[0])


def test_batches_keep_order_and_size() -> None:
    sizes = [3000, 5000, 200, 9000, 1, 8191]
    groups = [list(group) for group in batches(sizes)]
    assert [i for group in groups for i in group] == list(range(6))
    assert groups == [[0, 1], [2], [3], [4, 5]]
    assert list(batches([])) == []


def test_refusals(task_tokenizer: Tokenizer) -> None:
    model = FakeModel(task_tokenizer)
    for arguments, message in (
        ({"task": "haystack"}, "expected one of needle, recall"),
        ({"task": "needle", "lengths": [9000]}, "reads 2 to 4096"),
        ({"task": "needle", "lengths": [150]}, "give a longer one"),
        ({"task": "recall", "lengths": [200]}, "about"),
        ({"task": "needle", "samples": 0}, "at least 1 of each"),
        ({"task": "needle", "attention": ["sparse"]}, "expected some of selection, full, recent"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_retrieval(model, task_tokenizer, **arguments)  # type: ignore[arg-type]
