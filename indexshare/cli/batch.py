"""Many prompts from a file of JSON lines to a file of JSON lines, which can be gone on with after an interruption."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from indexshare.cli.measuring import MeasuringBar
from indexshare.cli.options import ModelOptions
from indexshare.cli.output import note
from indexshare.cli.prompts import Job
from indexshare.cli.streaming import as_json
from indexshare.text.files import check_can_write, plural
from indexshare.text.tokenizer import Tokenizer

Write = Callable[[dict[str, Any]], None]


def run_jobs(jobs: Sequence[Job], out: Path | None, tokenizer: Tokenizer, options: ModelOptions) -> dict[str, Any]:
    """Write the result of every job as a line of JSON, as soon as it is there.

    A file that holds results of these jobs is gone on with: they are not made again.

    Args:
        jobs: what to write.
        out: the file; standard output for None.
        tokenizer, options: of the model.

    Returns:
        What was done, as plain values.

    Raises:
        ValueError: the file cannot be written or holds other results; the model or a job cannot be run.
    """
    keys = [job.key(options) for job in jobs]
    with _results(out, jobs, keys) as (done, write):
        left = [number for number in range(len(jobs)) if number not in done]
        if done:
            note(
                f"{out} holds {plural(len(done), 'result')} of {len(jobs):,}; {plural(len(left), 'text')} left to write"
            )
        if left:
            _run([jobs[n] for n in left], [keys[n] for n in left], write, tokenizer, options)
    prompts = len({job.number for job in jobs})
    return {"model": options.model, "prompts": prompts, "completions": len(jobs), "kept": len(done), "out": str(out)}


def _run(jobs: Sequence[Job], keys: Sequence[str], write: Write, tokenizer: Tokenizer, options: ModelOptions) -> None:
    llm = options.load(tokenizer)
    outputs = llm.generate_each([job.prompt for job in jobs], [job.params for job in jobs])
    with MeasuringBar() as bar, bar.stage("writing", "texts") as progress:
        for finished, (number, output) in enumerate(outputs, 1):
            job = jobs[number]
            place = {"index": job.number, "sample": job.sample, "key": keys[number]}
            write(place | job.said | as_json(output, tokenizer))
            progress(finished, len(jobs))


@contextmanager
def _results(out: Path | None, jobs: Sequence[Job], keys: Sequence[str]) -> Iterator[tuple[set[int], Write]]:
    """The numbers of the jobs that are done, and what takes another line."""
    if out is None:
        yield set(), _to_standard_output
        return
    from indexshare.checkpoint.lock import file_lock

    check_can_write(out)
    if out.exists() and not out.is_file():
        raise ValueError(f"{out} is not a regular file; leave out --out for standard output")
    with file_lock(out):
        content = out.read_bytes() if out.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        done = _done(out, whole, jobs, keys)
        with out.open("r+b" if content else "wb") as file:
            file.truncate(len(whole))  # what a kill left of a line
            file.seek(0, os.SEEK_END)

            def write(entry: dict[str, Any]) -> None:
                file.write(_line(entry).encode("utf-8"))
                file.flush()

            yield done, write


def _done(out: Path, content: bytes, jobs: Sequence[Job], keys: Sequence[str]) -> set[int]:
    """Numbers of the jobs whose results a file holds; ValueError where it holds anything else."""
    places = {(job.number, job.sample): number for number, job in enumerate(jobs)}
    done = set[int]()
    for line_number, line in enumerate(content.decode("utf-8", errors="replace").split("\n")[:-1], 1):
        try:
            entry = json.loads(line)
            number = places[entry["index"], entry["sample"]]
            fits = entry["key"] == keys[number]
        except (ValueError, LookupError, TypeError, RecursionError):
            fits = False
        if not fits:
            raise ValueError(
                f"{out}, line {line_number}: not a result of these prompts with these settings; "
                "give another --out, or remove the file"
            )
        done.add(number)
    return done


def _to_standard_output(entry: dict[str, Any]) -> None:
    sys.stdout.write(_line(entry))
    sys.stdout.flush()


_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}  # line ends to some readers of lines


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).translate(_LINE_ENDS) + "\n"
