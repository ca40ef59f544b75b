"""`indexshare verify`: is a checkpoint right, and does another program compute it as this one does?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from indexshare.cli.measuring import MeasuringBar
from indexshare.cli.output import console, print_json, print_lines, print_pairs, print_table
from indexshare.text.files import plural

if TYPE_CHECKING:
    from indexshare.config.model import ModelConfig
    from indexshare.model.glm import GlmMoeDsa
    from indexshare.verify.diagnose import Diagnosis
    from indexshare.verify.directory import Finding
    from indexshare.verify.observation import Observation

EXIT_DIFFERS = 1


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Other:
    """The program to compare with; without any, the directory is checked by itself.

    Parameters
    ----------
    transformers
        The same directory under transformers, in a process of its own.
    url
        A server that speaks OpenAI's completions (`echo` with `logprobs`) and has the model loaded.
    served_model
        The model's name on that server; by default the first that it lists.
    api_key
        Sent to that server as a bearer token.
    logprobs
        A JSON file with `token_ids` and `logprobs`, and optionally `precision`.
    gguf
        A GGUF file of the model under llama.cpp (the package llama-cpp-python).
    engine
        This package's own kernels on this machine, against the plain formulas.
    precision
        Type that the other program computes in: float32, bfloat16, float16, fp8 or q8_0. Decides which differences are
        rounding. By default what the program says, else bfloat16.
    """

    transformers: Annotated[bool, Parameter(negative="")] = False
    url: str | None = None
    served_model: str | None = None
    api_key: str | None = None
    logprobs: Path | None = None
    gguf: Path | None = None
    engine: Annotated[bool, Parameter(negative="")] = False
    precision: str | None = None

    @property
    def asked(self) -> list[str]:
        """Names of the programs that were given."""
        given = {"--transformers": self.transformers, "--url": self.url, "--logprobs": self.logprobs,
                 "--gguf": self.gguf, "--engine": self.engine}  # fmt: skip
        return [name for name, value in given.items() if value]


def verify(
    model: str,
    /,
    *,
    other: Other | None = None,
    topk: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Check a model directory, or compare how another program runs it and name the convention that differs.

    Parameters
    ----------
    model
        Name of a shipped model, or a model directory.
    topk
        Compare with this `index_topk` on both sides (--transformers and --engine only): a small one makes every mistake
        in the selection show in a short text.
    tokens
        Length of the random text; by default 24 more than `index_topk`.
    seed
        Of the random text.
    tolerance
        Root mean square difference of log-probabilities that counts as rounding.
    json
        Print one JSON object instead of tables.
    """
    from indexshare.config.shipped import model_directory

    other, directory = other or Other(), model_directory(model)
    if len(other.asked) > 1:
        raise ValueError(f"{' and '.join(other.asked)} each name a program to compare with; give one of them")
    if not other.asked:
        return _check(model, directory, json)
    if topk is not None and (topk < 1 or other.asked[0] in ("--url", "--logprobs", "--gguf")):
        raise ValueError(
            f"--topk is {topk}; expected at least 1, with --transformers or --engine: other programs have the "
            "configuration they were started with"
        )
    found = _compare(directory, other, topk, tokens, seed, tolerance)
    if json:
        print_json({"model": model} | found.to_dict())
    else:
        _show(model, found)
    return 0 if found.verdict == "same" else EXIT_DIFFERS


def _check(model: str, directory: Path, json: bool) -> int:
    """The directory by itself."""
    from indexshare.verify.directory import check_directory

    with MeasuringBar() as bar:
        bar.begin("reading", "tensors")
        findings = check_directory(directory, bar)
        bar.end()
    errors = [finding for finding in findings if finding.level == "error"]
    if json:
        print_json({"model": model, "ok": not errors, "findings": [vars(finding) for finding in findings]})
    else:
        _show_findings(model, findings)
    return EXIT_DIFFERS if errors else 0


def _show_findings(model: str, findings: list[Finding]) -> None:
    out = console()
    if not findings:
        print_lines([f"{model}: tensors, values, experts, indexers, tokenizer and template are in order"], to=out)
    for finding in findings:
        print_lines([f"{finding.level}: {finding.place}: {finding.says}"], to=out)


def _compare(
    directory: Path, other: Other, topk: int | None, tokens: int | None, seed: int, tolerance: float | None
) -> Diagnosis:
    """Run both sides."""
    from indexshare.checkpoint.load import load_model
    from indexshare.config.model import ModelConfig
    from indexshare.verify.diagnose import Diagnostician
    from indexshare.verify.forward import PlainForward

    overrides = {} if topk is None else {"index_topk": topk}
    config = ModelConfig.load(directory).replace(**overrides)
    with MeasuringBar() as bar:
        bar.begin("the other program", "texts")
        loaded = load_model(directory, dtype="float32", config_overrides=overrides)
        observation = _ask(directory, loaded, config, other, topk, tokens, seed)
        bar.end()
        bar.begin("comparing", "passes")
        forward = PlainForward(loaded.config, loaded.state_dict())
        found = Diagnostician(forward, observation, tolerance=tolerance, progress=bar).diagnose()
        bar.end()
    return found


def _ask(
    directory: Path,
    loaded: GlmMoeDsa,
    config: ModelConfig,
    other: Other,
    topk: int | None,
    tokens: int | None,
    seed: int,
) -> Observation:
    """What the other program says of the text."""
    from indexshare.verify import others
    from indexshare.verify.observation import read_logprobs
    from indexshare.verify.probe import probe_tokens

    if other.logprobs is not None:
        return read_logprobs(other.logprobs)
    ids = probe_tokens(config, tokens=tokens, seed=seed).tolist()
    if other.transformers:
        return others.ask_transformers(directory, ids, index_topk=topk, dtype=other.precision or "float32")
    if other.gguf is not None:
        return others.ask_llama_cpp(other.gguf, ids, precision=other.precision or "bfloat16")
    if other.url is not None:
        return others.ask_server(
            other.url, ids, model=other.served_model, key=other.api_key, precision=other.precision or "bfloat16"
        )
    return others.ask_ourselves(loaded, ids)


def _show(model: str, found: Diagnosis) -> None:
    out = console()
    verdicts = {
        "same": "computes the same",
        "explained": "differs, and this explains it",
        "partly explained": "differs, and this explains a part of it",
        "unexplained": "differs, and no known convention explains it",
    }
    pairs: list[tuple[str, Any]] = [
        ("program", f"{found.program} ({found.precision})"),
        ("verdict", verdicts[found.verdict]),
        ("difference", f"{found.difference:.3g} (rounding: up to {found.tolerance:.3g})"),
    ]
    if found.verdict != "same" and found.first_layer is not None:
        pairs.append(("first layer apart", str(found.first_layer)))
    pairs += [(hypothesis.name, hypothesis.says) for hypothesis in found.found]
    if found.found:
        pairs.append(("left", f"{found.left:.3g}"))
    print_pairs(f"{model}: {plural(found.tokens, 'token')}, index_topk {found.index_topk}", pairs, to=out)
    if found.attempts:
        out.print()
        rows = [[" + ".join(attempt.names), f"{attempt.difference:.3g}"] for attempt in found.attempts[:8]]
        print_table("Nearest hypotheses", ["changed", "difference left"], rows, to=out)
