"""The long questions as tasks of lm-evaluation-harness, for anybody to run without this package.

A folder gets one YAML file and one file of questions for each kind and length, a group of all of them, and `utils.py`,
which holds the very functions that score answers here. The harness reads the folder with `--include_path`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from indexshare.data.long_tasks import VERSION, Form, LongTask
from indexshare.data.long_tasks.base import part_found, read_answer
from indexshare.eval.asking import Counter
from indexshare.eval.forward import Progress
from indexshare.eval.long import Asking
from indexshare.text.files import replacing

GROUP = "indexshare_long"
_UTILS = '''"""Questions and scores of the tasks beside this file.

Written by indexshare (MIT licence); needs the standard library and `datasets`, which comes with lm-evaluation-harness.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path


{functions}


def load(file: str, **settings: object) -> dict:
    """The questions of a task, from the file beside this one."""
    import datasets

    with (Path(__file__).parent / file).open(encoding="utf-8") as lines:
        return {{"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}}


def process_results(doc: dict, results: list[str]) -> dict[str, float]:
    """The score of an answer."""
    return {{"score": part_found(doc["answers"], read_answer(results[0], doc["form"]), doc["scoring"])}}
'''
_TASK = """# {says}, in {length:,} tokens of prompt and answer ({form} form, seed {seed}, tokens of {counted_by})
task: {name}
custom_dataset: !function utils.load
dataset_kwargs:
  file: {name}.jsonl
output_type: generate_until
test_split: test
num_fewshot: 0
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{target}}}}"
target_delimiter: ""
process_results: !function utils.process_results
generation_kwargs:
  until: []
  do_sample: false
  temperature: 0.0
  max_gen_toks: {room}
metric_list:
  - metric: score
    aggregation: mean
    higher_is_better: true
metadata:
  version: {version}
"""


def task_name(task: LongTask, length: int, form: Form) -> str:
    """What a kind of question at a length is called in the harness."""
    return f"indexshare_{task.name.replace('-', '_')}_{length}{'_chat' if form == 'chat' else ''}"


def export_tasks(
    folder: Path,
    tasks: Sequence[LongTask],
    asking: Asking,
    *,
    form: Form,
    counter: Callable[[LongTask], Counter],
    counted_by: str,
    progress: Progress | None = None,
) -> list[str]:
    """Write the tasks; files of the same names are replaced.

    Args:
        folder: made if it is not there.
        tasks, asking: which questions; they are those that `evaluate_long` puts with the same counter.
        form: how they are put.
        counter: tokens of a prompt for a task.
        counted_by: whose tokens those are, for people.
        progress: told (questions done, questions in all).

    Returns:
        The names of the tasks, to be run with `--tasks`; the group `indexshare_long` (`..._chat`) is all of them.

    Raises:
        ValueError: a length is too short for a task.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names, total = list[str](), len(tasks) * len(asking.lengths) * asking.samples
    for task in tasks:
        count = counter(task)
        for length in asking.lengths:
            lines = list[str]()
            for question, item in asking.items(task, length, form, count):
                doc = {
                    "prompt": question.prompt, "target": ", ".join(item.answers), "answers": list(item.answers),
                    "scoring": task.scoring, "form": form, "length": length, "index": question.number,
                }  # fmt: skip
                lines.append(json.dumps(doc) + "\n")
                if progress is not None:
                    progress(len(names) * asking.samples + len(lines), total)
            names.append(task_name(task, length, form))
            _write(folder / f"{names[-1]}.jsonl", "".join(lines))
            said = _TASK.format(
                name=names[-1], says=task.says, length=length, form=form, seed=asking.seed, counted_by=counted_by,
                room=asking.answer_tokens or task.room(form), version=VERSION,
            )  # fmt: skip
            _write(folder / f"{names[-1]}.yaml", said)
    _write(
        folder / "utils.py",
        _UTILS.format(functions="\n\n".join(inspect.getsource(one) for one in (read_answer, part_found))),
    )
    group = GROUP + ("_chat" if form == "chat" else "")
    _write(folder / f"{group}.yaml", _group(group, names))
    return names


def _group(name: str, tasks: Sequence[str]) -> str:
    """All tasks under one name, with their mean."""
    listed = "".join(f"  - {task}\n" for task in tasks)
    mean = "aggregate_metric_list:\n  - metric: score\n    aggregation: mean\n    weight_by_size: true\n"
    return f"group: {name}\ntask:\n{listed}{mean}metadata:\n  version: {VERSION}\n"


def _write(file: Path, text: str) -> None:
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
