"""`indexshare verify`: is a checkpoint right, and does another program compute it as this one does?"""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from indexshare.cli.measuring import MeasuringBar
from indexshare.cli.output import console, print_json, print_lines, print_pairs, print_table
from indexshare.config.arguments import as_integer
from indexshare.config.environment import read_secret
from indexshare.text.files import check_can_write, plural, replacing

if TYPE_CHECKING:
    from indexshare.model.glm import GlmMoeDsa
    from indexshare.verify.diagnose import Diagnosis
    from indexshare.verify.directory import Finding
    from indexshare.verify.forward import PlainForward
    from indexshare.verify.observation import Observation

EXIT_DIFFERS = 1
_ROUNDING = 1e-6  # gaps between what was chosen and what was not that float32 may close


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Other:
    """The program to compare with; without any, the directory is checked by itself.

    Parameters
    ----------
    transformers
        The same directory under transformers, in a process of its own, layer by layer.
    transformers_from
        The directory that transformers loads in place of MODEL's, such as another tool's conversion of the same model.
    url
        A server that speaks OpenAI's completions (`echo` with `logprobs`, or `prompt_logprobs`) and runs the model.
    model_name
        The model's name on that server; by default the first that it lists.
    api_key_env
        Environment variable that holds the key of that server.
    logprobs
        A JSON file with `token_ids` and `logprobs`, and optionally `precision`; `--write-ids` begins one.
    gguf
        A GGUF file of the model under llama.cpp (the package llama-cpp-python).
    engine
        This package's own engine on this machine, prompt and decode steps, against the plain formulas.
    precision
        Type that the other program computes in: float32, bfloat16, float16, fp8 or q8_0. Decides which differences are
        rounding. By default what the program says, else bfloat16.
    """

    transformers: Annotated[bool, Parameter(negative="")] = False
    transformers_from: Path | None = None
    url: str | None = None
    model_name: str | None = None
    api_key_env: str | None = None
    logprobs: Path | None = None
    gguf: Path | None = None
    engine: Annotated[bool, Parameter(negative="")] = False
    precision: str | None = None

    @property
    def with_transformers(self) -> bool:
        """Whether transformers is asked."""
        return self.transformers or self.transformers_from is not None

    @property
    def asked(self) -> list[str]:
        """Names of the programs that were given."""
        given = {"--transformers": self.with_transformers, "--url": self.url, "--logprobs": self.logprobs,
                 "--gguf": self.gguf, "--engine": self.engine}  # fmt: skip
        return [name for name, value in given.items() if value]

    def check(self) -> None:
        """Refuse (ValueError) what cannot be meant, before anything is loaded."""
        from indexshare.checkpoint.load import parse_dtype
        from indexshare.verify.diagnose import TOLERANCES

        if len(self.asked) > 1:
            raise ValueError(f"{' and '.join(self.asked)} each name a program to compare with; give one of them")
        for name, value in {"--model-name": self.model_name, "--api-key-env": self.api_key_env}.items():
            if value is not None and self.url is None:
                raise ValueError(f"{name} is of use with --url only")
        if self.precision is None:
            return
        if not self.asked or self.logprobs is not None:
            raise ValueError("--precision is of use with a program to compare with; a file says its own")
        if self.precision not in TOLERANCES:
            raise ValueError(f"--precision is {self.precision!r}; expected one of {', '.join(TOLERANCES)}")
        if self.with_transformers or self.engine:
            parse_dtype(self.precision)

    @property
    def key(self) -> str | None:
        """The server's key; ValueError when its variable is not set."""
        return None if self.api_key_env is None else read_secret(self.api_key_env, "--api-key-env")

    def find(self) -> None:
        """Refuse (ValueError or an OSError) a program that is not there."""
        from indexshare.config.shipped import model_directory
        from indexshare.verify.others import require
        from indexshare.verify.server import base_address

        if self.with_transformers:
            require("transformers")
        if self.transformers_from is not None:
            model_directory(str(self.transformers_from))
        if self.gguf is not None and not self.gguf.is_file():
            raise FileNotFoundError(
                f"no GGUF file {self.gguf}; make one with indexshare export MODEL --gguf {self.gguf.name}"
            )
        if self.gguf is not None:
            require("llama-cpp-python")
        if self.url is not None:
            base_address(self.url)
            _ = self.key


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Probe:
    """The text on which programs are compared.

    Parameters
    ----------
    topk
        Compare with this `index_topk` on both sides (--transformers and --engine only): a small one makes every mistake
        in the selection show in a short text.
    tokens
        Length of the random text; by default 24 more than `index_topk`.
    seed
        Of the random text.
    """

    topk: int | None = None
    tokens: int | None = None
    seed: int = 0

    def check(self, other: Other, *, writing: bool) -> None:
        """Refuse (ValueError) what cannot be meant, before anything is loaded."""
        as_integer("--seed", self.seed, low=0, high=2**63 - 1)
        if not other.asked and not writing and self != Probe():
            raise ValueError("--topk, --tokens and --seed choose a text for a program to compare with; name one")
        if other.logprobs is not None and self != Probe():
            raise ValueError("--logprobs brings its own text; leave out --topk, --tokens and --seed")
        if self.topk is not None and (self.topk < 1 or not (other.with_transformers or other.engine)):
            raise ValueError(
                f"--topk is {self.topk}; expected at least 1, with --transformers or --engine: other programs have the "
                "configuration they were started with"
            )

    def ids(self, forward: PlainForward, bar: MeasuringBar) -> list[int]:
        """The text for a model."""
        from indexshare.verify.probe import probe_tokens

        return [int(i) for i in probe_tokens(forward, tokens=self.tokens, seed=self.seed, progress=bar)]


def verify(
    model: str,
    /,
    *,
    other: Other | None = None,
    probe: Probe | None = None,
    write_ids: Path | None = None,
    tolerance: float | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Check a model directory, or compare how another program runs it and name the convention that differs.

    Parameters
    ----------
    model
        Name of a shipped model, or a model directory.
    write_ids
        Write the text as token ids to this JSON file and stop: for a program that is run by hand, whose
        log-probabilities come back with --logprobs.
    tolerance
        Root mean square difference of log-probabilities that counts as rounding.
    json
        Print one JSON object instead of tables.
    """
    from indexshare.config.shipped import model_directory

    other, probe, directory = other or Other(), probe or Probe(), model_directory(model)
    other.check()
    probe.check(other, writing=write_ids is not None)
    if write_ids is not None:
        return _write_ids(model, directory, other, probe, write_ids, json)
    if not other.asked:
        if tolerance is not None:
            raise ValueError("--tolerance is of use with a program to compare with, such as --transformers")
        return _check(model, directory, json)
    found = _compare(directory, other, probe, tolerance)
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


def _compare(directory: Path, other: Other, probe: Probe, tolerance: float | None) -> Diagnosis:
    """Run both sides."""
    from indexshare.verify.diagnose import Diagnostician
    from indexshare.verify.observation import read_logprobs

    other.find()
    given = None if other.logprobs is None else read_logprobs(other.logprobs)  # what is wrong with it is said first
    probe = probe if given is None else Probe(tokens=len(given.token_ids))
    with MeasuringBar() as bar:
        loaded, forward = _load(directory, probe)
        if given is None:
            with bar.stage("choosing a text", "texts"):
                ids = probe.ids(forward, bar)
            with bar.stage("the other program", "texts"):
                given = _ask(directory, loaded, other, ids, probe.topk)
        with bar.stage("comparing", "passes"):
            return Diagnostician(forward, given, tolerance=tolerance, progress=bar).diagnose()


def _load(directory: Path, probe: Probe) -> tuple[GlmMoeDsa, PlainForward]:
    """The model and its formulas, once the text fits it."""
    from indexshare.checkpoint.load import load_model
    from indexshare.config.model import ModelConfig
    from indexshare.verify.forward import PlainForward
    from indexshare.verify.probe import probe_length

    overrides = {} if probe.topk is None else {"index_topk": probe.topk}
    config = ModelConfig.load(directory)
    kind = config.variant.attention.kind
    if kind != "mla":
        raise ValueError(
            f"{directory} has attention of the kind {kind!r}; verify compares programs on models with latent attention "
            "('mla'), and checks any directory by itself"
        )
    probe_length(config.replace(**overrides), probe.tokens)
    loaded = load_model(directory, dtype="float32", config_overrides=overrides)
    return loaded, PlainForward(loaded.config, loaded.state_dict())


def _ask(directory: Path, loaded: GlmMoeDsa, other: Other, ids: list[int], topk: int | None) -> Observation:
    """What the other program says of the text."""
    from indexshare.config.shipped import model_directory
    from indexshare.verify import others
    from indexshare.verify.server import ask_server

    if other.with_transformers:
        source = directory if other.transformers_from is None else model_directory(str(other.transformers_from))
        return others.ask_transformers(source, ids, index_topk=topk, dtype=other.precision or "float32")
    if other.gguf is not None:
        return others.ask_llama_cpp(other.gguf, ids, precision=other.precision or "bfloat16")
    if other.url is not None:
        return ask_server(
            other.url, ids, model=other.model_name, key=other.key, precision=other.precision or "bfloat16",
            spell=_speller(directory),
        )  # fmt: skip
    beyond = len(ids) - loaded.config.index_topk
    return others.ask_ourselves(_in_type(directory, loaded, other), ids[: -(beyond // 2)], written=beyond // 2)


def _in_type(directory: Path, loaded: GlmMoeDsa, other: Other) -> GlmMoeDsa:
    """The model in the type that the engine shall compute in."""
    from indexshare.checkpoint.load import load_model

    if other.precision in (None, "float32"):
        return loaded
    return load_model(directory, dtype=other.precision, config_overrides={"index_topk": loaded.config.index_topk})


def _speller(directory: Path) -> Callable[[int], str] | None:
    """Text of single tokens, where the directory has a tokenizer."""
    from indexshare.text.tokenizer import TOKENIZER_FILE, Tokenizer

    if not (directory / TOKENIZER_FILE).is_file():
        return None
    tokenizer = Tokenizer.load(directory)

    def spell(token: int) -> str:
        known = token < tokenizer.vocab_size
        return tokenizer.token_bytes(token).decode("utf-8", errors="ignore") if known else ""

    return spell


def _write_ids(model: str, directory: Path, other: Other, probe: Probe, file: Path, json: bool) -> int:
    """A text for a program that is run by hand."""
    if other.asked:
        raise ValueError(f"--write-ids only writes a text; give it without {other.asked[0]}")
    check_can_write(file, replaces=(b'{"token_ids"',))
    with MeasuringBar() as bar:
        _, forward = _load(directory, probe)
        with bar.stage("choosing a text", "texts"):
            ids = probe.ids(forward, bar)
    with replacing(file) as temporary:
        temporary.write_text(json_module.dumps({"token_ids": ids}) + "\n", encoding="utf-8")
    if json:
        print_json({"model": model, "file": str(file), "tokens": len(ids)})
    else:
        says = (
            f'{plural(len(ids), "token")} in {file}: run them, add their natural log-probabilities as "logprobs", then'
        )
        print_lines([says, f"  indexshare verify {model} --logprobs {file}"], to=console())
    return 0


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
    pairs += [(hypothesis.name, hypothesis.says) for hypothesis in found.found]
    if found.found:
        pairs.append(("left", f"{found.left:.3g}"))
    pairs += _layers_apart(found)
    if found.verdict != "same" and found.margin < _ROUNDING:
        pairs.append(("note", "some choices in this text hang on rounding; try another --seed"))
    print_pairs(f"{model}: {plural(found.tokens, 'token')}, index_topk {found.index_topk}", pairs, to=out)
    if found.attempts:
        out.print()
        rows = [[" + ".join(attempt.names), f"{attempt.difference:.3g}"] for attempt in found.attempts[:8]]
        print_table("Nearest hypotheses", ["changed", "difference left"], rows, to=out)


def _layers_apart(found: Diagnosis) -> list[tuple[str, str]]:
    """Which parts of which layers differ by themselves, where the program can be looked into."""
    if not found.layers:
        return []
    apart: dict[str, list[int]] = {}
    for one in found.layers:
        for part in one.apart(found.layer_tolerance):
            apart.setdefault(part, []).append(one.layer)
    if not apart:
        return [("layers", f"each of the {len(found.layers)} computes the same by itself")]
    return [(f"{part} differs", f"by itself in {plural(len(those), 'layer')}: {spans(those)}")
            for part, those in apart.items()]  # fmt: skip


def spans(numbers: Sequence[int]) -> str:
    """Rising numbers in short: `0-2, 6`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
