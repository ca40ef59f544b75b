"""Long questions through `evaluate_long`: prompts, scores and intervals; and through the command."""

import dataclasses
import json
import math
from typing import Any

import pytest

from indexshare.cli import main
from indexshare.data.long_tasks import long_task, long_tasks
from indexshare.engine.llm import LLM
from indexshare.eval.long import evaluate_long, first_line, mean_score
from indexshare.eval.suites.registry import suite_names
from indexshare.text.tokenizer import Tokenizer
from tests.unit.eval.fakes import FakeModel


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_scores_are_those_of_the_answers(
    monkeypatch: pytest.MonkeyPatch, task_tokenizer: Tokenizer, right: float
) -> None:
    task, prompts = long_task("qa"), list[str]()
    generate = LLM.generate

    def answer(self: LLM, given: list[str], *arguments: Any, **settings: Any) -> Any:
        (prompt,) = given
        prompts.append(prompt)
        outputs = generate(self, given, *arguments, **settings)
        name = prompt.rsplit("Answer: ", 1)[1].removesuffix(" was born in")
        town = prompt.split(f"{name}, a ", 1)[1].split(" was born in ")[1].split(" ")[0]
        return [dataclasses.replace(outputs[0], text=f" {town}.\nMore" if right else " Nowhere.\n" + town)]

    monkeypatch.setattr(LLM, "generate", answer)
    seen = list[tuple[int, int]]()
    model = FakeModel(task_tokenizer)
    report = evaluate_long(
        model, task_tokenizer, task, lengths=(600, 1200), samples=2, progress=lambda *both: seen.append(both)
    )
    assert report.scores == ((right, right), (right, right))
    assert all(size <= length - task.answer_tokens for length, row in zip(report.lengths, report.tokens, strict=True)
               for size in row)  # fmt: skip
    assert seen[-1] == (3600, 3600)
    assert len(set(prompts)) == 4


def test_intervals_cover() -> None:
    """Exactly, for right and wrong answers: over all chances, 95 % of the time."""
    count, chances = 25, [n / 20 for n in range(1, 20)]
    covered = 0.0
    for chance in chances:
        for right in range(count + 1):
            interval = mean_score([1.0] * right + [0.0] * (count - right)).interval
            assert interval is not None
            if interval[0] <= chance <= interval[1]:
                covered += math.comb(count, right) * chance**right * (1 - chance) ** (count - right)
    assert 0.94 < covered / len(chances) < 0.97


def test_what_counts_of_an_answer() -> None:
    assert first_line(" \n 42.\nQuestion: more") == "42."


def test_every_task_is_a_suite(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(long_tasks()) <= set(suite_names())
    code = main(["eval", "pico", "--suite", "multi-key,qa", "--lengths", "1K", "--samples", "1", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert code == 0
    assert [row["length"] for row in facts["qa"]["lengths"]] == [1024]


def test_a_length_without_room_is_refused_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "pico", "--suite", "multi-key,tracking", "--lengths", "8K,200"]) == 2
    assert "a length is 200 tokens; multi-key needs at least" in capsys.readouterr().err


def test_too_few_samples() -> None:
    with pytest.raises(ValueError, match="--samples is 0"):
        evaluate_long(None, None, long_task("qa"), lengths=(64,), samples=0)  # type: ignore[arg-type]
