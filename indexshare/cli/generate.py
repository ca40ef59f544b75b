"""`indexshare generate`: continue one or more texts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from indexshare.cli.options import ModelOptions, SamplingOptions
from indexshare.cli.output import note, print_json, write
from indexshare.cli.streaming import as_json, report_cost, stream
from indexshare.text.files import NotText, decode_text


def generate(
    *prompts: str,
    file: Annotated[tuple[str, ...], Parameter(name=["--file", "-f"], negative="", allow_leading_hyphen=True)] = (),
    model_options: ModelOptions | None = None,
    sampling: SamplingOptions | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Continue a text, printing it as it is made, then what it cost (on standard error).

    Several prompts run together, as one batch, and are printed one after the other.

    Parameters
    ----------
    prompts
        The texts to continue, each quoted as one argument.
    file
        Read a prompt from this file, or from standard input if it is `-`. May be given several times.
    json
        Print one JSON object with all completions instead.
    """
    options, sampling = model_options or ModelOptions(), sampling or SamplingOptions()
    texts = [*prompts, *(_read_prompt(name) for name in file)]
    if not texts:
        raise ValueError("no prompt; give one as an argument, or a file with --file (- for standard input)")
    defaults = options.generation()
    params, tokenizer = sampling.params(defaults), options.tokenizer()
    longest = max(len(tokenizer.encode_prompt(text)) for text in texts)
    params = sampling.fitted(params, options.context() - longest)
    if not json:
        sampling.announce(params, defaults)
    llm = options.load(tokenizer)
    if json:
        outputs = llm.generate(texts, params)
        completions = [{"prompt": text} | as_json(output) for text, output in zip(texts, outputs, strict=True)]
        print_json({"model": options.model, "completions": completions})
    elif len(texts) == 1:
        output = stream(llm, texts[0], params)
        report_cost(output.stats, context=f"{output.stats.prompt_tokens:,} tokens of prompt")
    else:
        outputs = llm.generate(texts, params, progress=sys.stderr.isatty())
        for number, output in enumerate(outputs, 1):
            note(f"[{number} of {len(texts)}]")
            write(output.text + ("" if output.text.endswith("\n") else "\n"))
            report_cost(output.stats, context=f"{output.stats.prompt_tokens:,} tokens of prompt")


def _read_prompt(name: str) -> str:
    data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        return decode_text(data)
    except NotText as error:
        raise ValueError(f"the prompt file {name} is {error}; expected UTF-8 text") from None
