"""The long questions as tasks of lm-evaluation-harness: the same questions and scores, without this package."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from indexshare.cli import main
from indexshare.data.long_tasks import fit_item, long_task, long_tasks, score
from indexshare.eval.suites.long import counted_by

CHECK = """
import json, sys
sys.modules["indexshare"] = None  # not importable
sys.path.insert(0, sys.argv[1])
import utils
docs = [json.loads(line) for line in open(f"{sys.argv[1]}/{sys.argv[2]}.jsonl", encoding="utf-8")]
print(json.dumps([utils.process_results(doc, [answer])["score"] for doc in docs for answer in json.loads(sys.argv[3])]))
"""


class Loader(yaml.SafeLoader):
    """Reads `!function module.name` as the harness does, as a text."""


Loader.add_constructor("!function", lambda loader, node: f"!{loader.construct_scalar(node)}")  # type: ignore[arg-type]


def export(folder: Path, *more: str) -> list[str]:
    command = [
        "eval",
        "pico",
        "--suite",
        "long",
        "--lengths",
        "1400,1500",
        "--samples",
        "2",
        "--export-tasks",
        str(folder),
    ]
    assert main([*command, *more]) == 0
    return [path.stem for path in sorted(folder.glob("*.jsonl"))]


def test_tasks_and_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = export(tmp_path / "t", "--json")
    assert sorted(json.loads(capsys.readouterr().out)["tasks"]) == names and len(names) == 2 * len(long_tasks())
    group = yaml.load((tmp_path / "t" / "indexshare_long.yaml").read_text(), Loader)
    assert sorted(group["task"]) == names
    for name in names:
        task: dict[str, Any] = yaml.load((tmp_path / "t" / f"{name}.yaml").read_text(), Loader)
        assert task["task"] == name and task["dataset_kwargs"]["file"] == f"{name}.jsonl"
        assert task["custom_dataset"] == "!utils.load" and task["process_results"] == "!utils.process_results"
        assert task["generation_kwargs"]["until"] == [] and task["generation_kwargs"]["do_sample"] is False


@pytest.mark.parametrize("form", ["base", "chat"])
@pytest.mark.parametrize("kind", ["multi-value", "qa"])
def test_the_same_questions_and_scores(
    form: Any, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(tmp_path, "--form", form, "--seed", "3")
    task = long_task(kind)
    name = f"indexshare_{kind.replace('-', '_')}_1500{'_chat' if form == 'chat' else ''}"
    docs = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    count = counted_by("pico", form)(task)
    items = [fit_item(task, seed=3, index=n, length=1500, count=count, form=form) for n in range(2)]
    assert [doc["prompt"] for doc in docs] == [item.prompt(form) for item in items]
    right = [" and ".join(item.answers) for item in items]
    answers = [
        f" {right[0]}.",
        f"\n{right[1]}\nmore",
        "nothing",
        f"<think>{right[0]}</think>no",
        f"x\n{right[1]}",
        right[0][:-1],
    ]
    command = [sys.executable, "-c", CHECK, str(tmp_path), name, json.dumps(answers)]
    theirs = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    from indexshare.data.long_tasks import read_answer

    assert theirs == [score(task, item, read_answer(answer, form)) for item in items for answer in answers]
    assert len(set(theirs)) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pico", "--suite", "long"], "--export-tasks takes --lengths"),
        (["--suite", "long", "--lengths", "1K"], "--export-tasks needs a model or a --tokenizer"),
        (["pico", "--suite", "held-out"], "--suite has held-out, but only questions are exported"),
        (["pico", "--suite", "qa", "--lengths", "100"], "a length is 100 tokens; qa needs at least"),
    ],
)
def test_refusals(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *arguments, "--export-tasks", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
