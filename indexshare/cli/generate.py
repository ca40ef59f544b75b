"""`indexshare generate`: continue one or more texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from indexshare.cli.options import ModelOptions, SamplingOptions
from indexshare.cli.output import note, print_json
from indexshare.cli.prompts import JobMaker, read_prompt
from indexshare.cli.streaming import as_json, write_each
from indexshare.text.files import plural

if TYPE_CHECKING:
    from indexshare.engine.outputs import CompletionOutput


def generate(
    *texts: Annotated[str, Parameter(name="prompts")],
    file: Annotated[tuple[str, ...], Parameter(name=["--file", "-f"], negative="", allow_leading_hyphen=True)] = (),
    prompts: Annotated[str | None, Parameter(name="--prompts", allow_leading_hyphen=True)] = None,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    model_options: ModelOptions | None = None,
    sampling: SamplingOptions | None = None,
    stats: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Continue a text, printing it as it is made, then what it cost (on standard error).

    Several prompts run together, as one batch, and are printed one after the other.

    Parameters
    ----------
    texts
        The texts to continue, each quoted as one argument.
    file
        Read a prompt from this file, or from standard input if it is `-`. May be given several times.
    prompts
        Read prompts from this file (`-` for standard input), a JSON object per line: "prompt" or "ids", and if wanted
        "params" (such as {"max_tokens": 20}) and "id". A result per line, as soon as it is there.
    out
        Where the results of --prompts go; standard output unless given. A file with some of them is gone on with.
    stats
        Also say what drafts were good for; those that stayed are green on a terminal.
    json
        Print one JSON object with all completions instead; with --out, one that says what was done.
    """
    options, sampling = model_options or ModelOptions(), sampling or SamplingOptions()
    if prompts is not None:
        _generate_lines(prompts, [*texts, *file], out, options, sampling, json)
        return
    if out is not None:
        raise ValueError("--out takes the results of --prompts; redirect standard output instead (> FILE)")
    read = [*texts, *(read_prompt(name) for name in file)]
    if not read:
        raise ValueError("no prompt; give one as an argument, or a file with --file (- for standard input)")
    maker = JobMaker.of(options, sampling)
    jobs, tokenizer = maker.from_texts(read), maker.tokenizer
    if not json:
        sampling.announce(jobs[0].params, maker.defaults)
    llm = options.load(tokenizer)
    inputs, params = [job.prompt for job in jobs], [job.params for job in jobs]
    if json:
        outputs = llm.generate(inputs, params)
        completions = [
            job.said | {"sample": job.sample} | as_json(o, tokenizer) for job, o in zip(jobs, outputs, strict=True)
        ]
        print_json({"model": options.model, "completions": completions})
    else:
        write_each(llm, inputs, params, _described, show_drafts=stats)


def _described(output: CompletionOutput) -> str:
    return f"{plural(output.stats.prompt_tokens, 'token')} of prompt"


def _generate_lines(
    name: str, others: Sequence[str], out: Path | None, options: ModelOptions, sampling: SamplingOptions, json: bool
) -> None:
    from indexshare.cli.batch import run_jobs

    if others:
        raise ValueError("--prompts and other prompts both say what to continue; give one of them")
    if json and out is None:
        raise ValueError("--prompts writes a JSON object per line anyway; leave out --json, or give --out")
    maker = JobMaker.of(options, sampling)
    done = run_jobs(maker.from_lines(name), out, maker.tokenizer, options)
    if json:
        print_json(done)
    elif out is not None:
        results = plural(done["completions"], "result")
        note(f"{results} of {plural(done['prompts'], 'prompt')} in {out}")
