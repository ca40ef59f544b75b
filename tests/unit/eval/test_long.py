"""Long questions through `evaluate_long`: prompts, scores and intervals; and through the command."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from indexshare.checkpoint.load import save_model
from indexshare.cli import main
from indexshare.config import preset
from indexshare.data.long_tasks import long_task, long_tasks, read_answer
from indexshare.engine.llm import LLM
from indexshare.eval.asking import ModelAsker
from indexshare.eval.long import Asking, evaluate_long, mean_score
from indexshare.eval.suites.registry import suite_names
from indexshare.model.glm import GlmMoeDsa
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
        ModelAsker("fake", model, task_tokenizer), task, Asking(lengths=(600, 1200), samples=2),
        progress=lambda *both: seen.append(both),
    )  # fmt: skip
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
    assert read_answer(" \n 42.\nQuestion: more", "base") == "42."
    assert read_answer("41? </think>\nIt is\n42.\n", "chat") == "It is\n42."


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
        Asking(lengths=(64,), samples=0)


def test_chat_form_by_the_template_of_the_directory(
    task_tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = preset("tiny").replace(vocab_size=task_tokenizer.vocab_size, dtype="float32")
    save_model(GlmMoeDsa(config).initialise(0), tmp_path)
    task_tokenizer.save(tmp_path)
    template = "<|user|>{{ messages[0].content }}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    prompts, generate = list[list[int]](), LLM.generate

    def listen(self: LLM, given: list[list[int]], *arguments: Any, **settings: Any) -> Any:
        prompts.extend(given)
        return generate(self, given, *arguments, **settings)

    monkeypatch.setattr(LLM, "generate", listen)
    command = [
        "eval",
        str(tmp_path),
        "--suite",
        "qa,multi-key",
        "--form",
        "chat",
        "--lengths",
        "1200",
        "--samples",
        "3",
    ]
    assert main([*command, "--parallel", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["qa"]["form"] == "chat" and len(prompts) == 6
    ends = task_tokenizer.id_of("<|user|>"), task_tokenizer.id_of("<|assistant|>")
    assert all((ids[0], ids[-1]) == ends and len(ids) <= 1200 - 24 - 96 for ids in prompts)
    assert [size for task in ("multi-key", "qa") for size in facts[task]["lengths"][0]["prompt_tokens"]] == [
        len(ids) for ids in prompts
    ]
