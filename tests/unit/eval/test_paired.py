"""Programs on the same questions: intervals that cover, exact chances, and what the command makes of them."""

import hashlib
import json
import math
import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from indexshare.cli import main
from indexshare.config.shipped import model_directory
from indexshare.data.long_tasks import Form, LongTask, long_task
from indexshare.eval.asking import Answer, Counter, Question, Refused
from indexshare.eval.long import Asking, LongReport, by_question, compare_long, evaluate_long, mean_score
from indexshare.eval.paired import exact_p_value, paired
from tests.unit.eval.servers import Behaviour, reader, serving

QA = long_task("qa")


def test_the_interval_is_that_of_bonett_and_price() -> None:
    """Their formula: 3 and 1 of 20 questions are answered by one alone, and one more of each."""
    found = paired([1.0] * 12 + [0.0] * 8, [1.0] * 9 + [0.0] * 3 + [1.0] * 1 + [0.0] * 7)
    n = 20 + 2
    one, other = (3 + 1) / n, (1 + 1) / n
    centre, half = one - other, 1.959964 * math.sqrt((one + other - (one - other) ** 2) / n)
    assert found.difference.value == pytest.approx(0.1)
    assert found.difference.interval == pytest.approx((centre - half, centre + half))
    assert (found.better, found.worse, found.questions) == (3, 1, 20) and not found.sure


def test_agreement_on_every_question_proves_little() -> None:
    few, many = (paired([1.0] * n, [1.0] * n).difference.interval for n in (5, 500))
    assert few is not None and many is not None
    assert few == (-few[1], few[1]) and 0.2 < few[1] < 0.4 and many[1] < 0.01


def test_the_exact_test() -> None:
    assert exact_p_value(0, 0) == exact_p_value(3, 3) == 1.0
    assert exact_p_value(6, 0) == exact_p_value(0, 6) == pytest.approx(2 / 64)
    assert exact_p_value(8, 1) == pytest.approx(2 * (1 + 9) / 512)


def test_scores_must_be_pairs() -> None:
    for wrong in (([], []), ([1.0], [])):
        with pytest.raises(ValueError, match="expected one of each per question"):
            paired(*wrong)


class Guesser:
    """Right with a chance of its own at each prompt; half of the luck lies in the prompt, the same for all."""

    form: Form = "base"

    def __init__(self, name: str, chance: float) -> None:
        self.name = self.identity = name
        self.chance = chance

    def counter(self, task: LongTask) -> Counter:
        return lambda prompt: len(prompt.split())

    def answers(self, questions: Iterable[Question], parallel: int) -> Iterator[tuple[Question, Answer | Refused]]:
        for question in questions:
            hard = random.Random(hashlib.sha256(question.prompt.encode()).hexdigest()).random()
            own = random.Random(hashlib.sha256((self.name + question.prompt).encode()).hexdigest()).random()
            right = (hard if own < 0.5 else own * 2 - 1) < self.chance  # half of the luck lies in the question
            yield question, Answer(f" {reader(question.prompt) if right else 'Nowhere'}.", None)


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.3), (0.95, 0.95), (0.9, 0.99), (0.05, 0.0)])
def test_twenty_repeats_with_other_seeds_are_covered(first: float, second: float) -> None:
    """Of 20 intervals at 95 %, 17 or more hold the truth, which is known here, but for one time in sixty."""
    askers, held = (Guesser("a", first), Guesser("b", second)), [0, 0, 0]
    for seed in range(20):
        asking = Asking(lengths=(150,), samples=20, seed=seed)
        reports = [evaluate_long(asker, QA, asking) for asker in askers]
        apart = compare_long(reports[:1], reports[1:])
        assert apart is not None
        found = [(report.mean(150), asker.chance) for report, asker in zip(reports, askers, strict=True)]
        for place, (estimate, truth) in enumerate([*found, (apart.difference, first - second)]):
            assert estimate is not None and estimate.interval is not None
            held[place] += estimate.interval[0] <= truth <= estimate.interval[1]
    assert min(held) >= 17, held


def test_intervals_cover_with_parts_and_pairs() -> None:
    """Over 2,000 repeats at each setting: scores in quarters, which depend on the question, at 5 and 25 questions."""
    rng = random.Random(0)
    for count in (5, 25):
        for base, gain in ((0.5, 0.0), (0.8, 0.15), (0.97, 0.0), (0.3, 0.3)):
            held = [0, 0]
            for _ in range(2000):
                hard = [rng.random() for _ in range(count)]
                scores = [
                    [sum((h + rng.random()) / 2 < chance for _ in range(4)) / 4 for h in hard]
                    for chance in (base, min(1.0, base + gain))
                ]
                truth = [_chance(base), _chance(min(1.0, base + gain))]
                mean, apart = mean_score(scores[0]).interval, paired(scores[1], scores[0]).difference.interval
                assert mean is not None and apart is not None
                held[0] += mean[0] <= truth[0] <= mean[1]
                held[1] += apart[0] - 1e-9 <= truth[1] - truth[0] <= apart[1] + 1e-9
            assert min(held) >= 0.93 * 2000, (count, base, gain, held)


def _chance(x: float) -> float:
    """That the mean of two uniform numbers is below x."""
    return 2 * x * x if x < 0.5 else 1 - 2 * (1 - x) ** 2


def report(scores: list[list[float]], task: str = "qa") -> LongReport:
    return LongReport(
        task=task, program="p", form="base", lengths=tuple(range(len(scores))), scores=tuple(map(tuple, scores)),
        tokens=((),) * len(scores),
    )  # fmt: skip


def test_a_question_at_several_lengths_counts_once() -> None:
    one, other = report([[1.0, 0.0], [1.0, 1.0]]), report([[0.0, 0.0], [1.0, 1.0]])
    assert by_question([one, other], (0, 1)) == [1.0, 0.5, 0.5, 0.5]
    found = compare_long([one], [other])
    assert found is not None and (found.better, found.worse, found.questions) == (1, 0, 2)
    assert compare_long([one], [report([[0.0, 0.0], []])], [1]) is None, "nothing that both have read"
    with pytest.raises(ValueError, match="not of the same questions"):
        compare_long([one], [report([[0.0, 0.0], [1.0, 1.0]], "multi-key")])


def test_models_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model and a server that reads: the same questions, counted by the model's tokenizer; tables, JSON, picture."""
    pytest.importorskip("matplotlib")
    picture = tmp_path / "p.png"
    with serving(Behaviour()) as url:
        command = ["eval", "pico", "--url", url, "--suite", "qa,multi-key", "--lengths", "800,1200", "--samples", "2"]
        arguments = [*command, "--answers", str(tmp_path / "a.jsonl")]
        assert main([*arguments, "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert main([*arguments, "--plot", str(picture)]) == 0
    captured = capsys.readouterr()
    server = f"reads at {url}"
    assert [one["model"] for one in facts["models"]] == ["pico", server]
    (compared,) = facts["comparison"]["long"]
    assert compared["model"] == server and compared["less"] == "pico" and compared["all"]["questions"] == 4
    low, high = compared["tasks"]["qa"]["lengths"][1]["interval"]
    assert low < compared["tasks"]["qa"]["lengths"][1]["difference"] <= high
    assert facts["models"][1]["qa"]["lengths"][0]["score"] == 1.0
    assert f"{server} less pico, points of score" in captured.out and "McNemar's exact test" in captured.out
    assert "holds 16 answers of these programs with seed 0" in captured.err and picture.stat().st_size > 10_000


def test_plans_of_sharing_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    dsa = str(Path(__file__).parents[3] / "research" / "nano-dsa")
    models = [dsa, f"{dsa}@FFFSSSFSSSFSS"]
    if not Path(dsa).is_dir():
        pytest.skip("research/nano-dsa is not part of this checkout")
    assert main(["eval", *models, "--suite", "qa", "--lengths", "400", "--samples", "1", "--json"]) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert [one["model"] for one in facts["models"]] == models and "dropped" not in captured.err
    assert facts["comparison"]["qa"][0]["less"] == dsa
    assert main(["eval", f"{dsa}@FFS", "--suite", "qa"]) == 2
    assert "3 layers, but num_hidden_layers is 13" in capsys.readouterr().err
    assert main(["eval", "nano@FFFFFFFFFFFFF", "--suite", "qa"]) == 2
    assert "missing" in capsys.readouterr().err


def test_the_older_suites_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model against itself in fewer bits: the same texts and files, so pairs of them."""
    models = [str(shutil.copytree(model_directory("pico"), tmp_path / name)) for name in ("a", "b")]
    notes = tmp_path / "notes"
    notes.mkdir()
    for name in ("one", "two"):
        (notes / f"{name}.py").write_text(f"def {name}(x):\n    return x + {len(name)}\n" * 9)
    command = ["eval", *models, "--suite", "held-out", "--text", str(notes)]
    assert main([*command, "--json"]) == 0
    (held_out,) = json.loads(capsys.readouterr().out)["comparison"]["held-out"]
    assert held_out["more_bits"] == 0 and held_out["interval"] == [0, 0]
    assert main([*command[:3], "--suite", "needle,recall", "--lengths", "600", "--samples", "1"]) == 0
    out = capsys.readouterr().out
    assert f"recall: {models[1]} less {models[0]}, points with 95 % intervals of pairs of texts" in out
    assert main([*command[:3], "--suite", "needle", "--lengths", "600", "--samples", "1", "--json"]) == 0
    (needle,) = json.loads(capsys.readouterr().out)["comparison"]["needle"]
    assert needle["lengths"][0]["selection"]["difference"] == 0
