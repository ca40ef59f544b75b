"""`indexshare eval`: what a model makes of text it was not trained on, and what it finds in long texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from indexshare.cli import evaluation_tables as tables
from indexshare.cli.measuring import MeasuringBar
from indexshare.cli.output import print_json

if TYPE_CHECKING:
    import torch

    from indexshare.data.splitting import Document
    from indexshare.eval.plots import Report
    from indexshare.model.glm import GlmMoeDsa
    from indexshare.text.tokenizer import Tokenizer

SUITES = ("held-out", "needle", "recall", "repository", "draft")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """How much of each suite is run.

    Parameters
    ----------
    lengths
        Context lengths in tokens, separated by commas (2048,8192 or 2K,8K). With them `held-out` also states the prices
        of sparsity and of sharing at each; `needle` and `recall` use 1K,2K,4K,8K unless given.
    ancestor
        A model whose layers are all Full, trained on the same text: `held-out` states the price of sharing against it.
    attention
        Kinds of attention that `needle` and `recall` compare: selection, full, recent (the most recent tokens).
    samples
        Questions of `needle` and `recall` at each length and depth.
    tokens
        Most held-out tokens that the prices (at each length) and `draft` score: 65,536 unless given.
    files
        Most files that `held-out` and `repository` score, drawn by the seed: all, and 24, unless given.
    context
        Tokens of context for `repository`: 16,384, or what the model reads, unless given.
    seed
        Of the generated texts and of the choice of files.
    packages
        Installed packages that the model was not trained on, separated by commas: score their files in place of the
        model's held-out ones.
    """

    lengths: str | None = None
    ancestor: str | None = None
    attention: str = "selection,full,recent"
    samples: int = 5
    tokens: int | None = None
    files: int | None = None
    context: int | None = None
    seed: int = 0
    packages: str | None = None

    @property
    def unseen(self) -> list[str]:
        """The names in `packages`."""
        return [name.strip() for name in (self.packages or "").split(",") if name.strip()]

    @property
    def kinds(self) -> list[str]:
        """The names in `attention`."""
        return [name.strip() for name in self.attention.split(",")]


def evaluate(
    model: str,
    /,
    *,
    suite: str = "held-out",
    text: Path | None = None,
    max_tokens: int = 8192,
    options: SuiteOptions | None = None,
    plot: Path | None = None,
    dtype: str | None = None,
    weights: str | None = None,
    device: str = "cpu",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Score a model: bits per byte on held-out files, retrieval by length and depth, use of its repository, drafting.

    Parameters
    ----------
    model
        Name of a shipped model, or a model directory.
    suite
        What to measure, separated by commas: held-out (bits per byte), needle, recall, repository, draft, or all.
    text
        Score every *.py file of this folder. By default the model's own held-out files, by its training.json.
    max_tokens
        Longest context of `held-out`; longer files are scored in stretches of it.
    plot
        Also draw what was measured into this file (png, svg or pdf); needs matplotlib.
    dtype
        float32 or bfloat16; unless given, float32 on a CPU, else as stored.
    weights
        int8 or int4: with matrices in so few bits, as `generate` has them.
    device
        Where to run: cpu, cuda, cuda:1, ...
    json
        Print one JSON object instead of tables.
    """
    from indexshare.cli.completion import check_device
    from indexshare.eval.plots import check_picture, draw

    options, suites = options or SuiteOptions(), parse_suites(suite)
    lengths = parse_lengths(options.lengths)
    check_device(device)
    if plot is not None:
        check_picture(plot)
    if text is not None and options.unseen:
        raise ValueError("--text and --packages both name what to score; give one of them")
    work = _Work.prepare(model, text, options.unseen, suites, dtype=dtype, weights=weights, device=device)
    work.check(suites, options, lengths)
    reports: dict[str, Report] = {}
    with MeasuringBar() as bar:
        for name in suites:
            reports |= work.run(name, bar, options, lengths, max_tokens)
    if plot is not None:
        draw(list(reports.values()), plot, model)
    if json:
        print_json({"model": model} | _facts(reports))
    else:
        _show(model, reports)


def parse_suites(text: str) -> tuple[str, ...]:
    """The suites of a comma-separated list, each once, in the order of `SUITES`; ValueError for unknown ones."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in (*SUITES, "all")]
    if unknown:
        raise ValueError(
            f"--suite has {unknown[0]!r}; expected some of {', '.join(SUITES)}, separated by commas, or all"
        )
    return tuple(name for name in SUITES if name in names or "all" in names)


def parse_lengths(text: str | None) -> tuple[int, ...] | None:
    """The lengths of a comma-separated list, `2K` meaning 2048; ValueError for anything else."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    numbers = [(part[:-1], 1024) if part[-1:] in ("k", "K") else (part, 1) for part in parts]
    if not all(number.isascii() and number.isdigit() for number, _ in numbers):
        raise ValueError(f"--lengths is {text!r}; expected numbers of tokens separated by commas: 2048,8192 or 2K,8K")
    return tuple(int(number) * unit for number, unit in numbers)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A loaded model and its text."""

    name: str
    model: GlmMoeDsa
    tokenizer: Tokenizer
    held_out: Sequence[Document]
    everything: Sequence[Document]
    dtype: str | torch.dtype | None
    device: str

    @classmethod
    def prepare(
        cls,
        name: str,
        text: Path | None,
        packages: Sequence[str],
        suites: Sequence[str],
        *,
        dtype: str | None,
        weights: str | None,
        device: str,
    ) -> _Work:
        """Read the text where a suite needs it, then load the model: a wrong folder costs nothing."""
        from indexshare.adapt.quantized import check_weights, packing
        from indexshare.checkpoint.load import load_model
        from indexshare.config.shipped import model_directory
        from indexshare.data.corpus import TextFolder, read_folder
        from indexshare.engine.llm import running_dtype
        from indexshare.eval.held_out import held_out_split, package_split, training_text
        from indexshare.text.tokenizer import Tokenizer

        check_weights(weights, device)
        directory, held_out, everything = model_directory(name), list["Document"](), list["Document"]()
        if text is not None:
            held_out = everything = read_folder(TextFolder(path=str(text))).documents
        elif set(suites) - {"needle", "recall"}:
            split = package_split(directory, packages) if packages else held_out_split(training_text(directory))
            held_out, everything = split.held_out, [*split.train, *split.held_out]
        kind = running_dtype(dtype, device)
        model = load_model(name, dtype=kind, device=device, adapt=packing(weights))
        tokenizer = Tokenizer.load(directory)
        return cls(
            name=name, model=model, tokenizer=tokenizer, held_out=held_out, everything=everything, dtype=kind,
            device=device,
        )  # fmt: skip

    def check(self, suites: Sequence[str], options: SuiteOptions, lengths: Sequence[int] | None) -> None:
        """Refuse (ValueError) now what a suite would refuse only when the suites before it are done."""
        from indexshare.eval.draft import check_draft
        from indexshare.eval.forward import check_attention, check_length
        from indexshare.eval.prices import check_selects

        if options.files is not None and options.files < 1:
            raise ValueError(f"--files is {options.files}; expected at least 1")
        if set(suites) & {"needle", "recall"}:
            check_attention(options.kinds)
        if "draft" in suites:
            check_draft(self.model)
        for length in lengths or ():
            check_length(self.model, length)
            if "held-out" in suites:
                check_selects(self.model, length)

    def run(
        self, suite: str, bar: MeasuringBar, options: SuiteOptions, lengths: Sequence[int] | None, max_tokens: int
    ) -> dict[str, Report]:
        """The reports of one suite by the name they have in JSON."""
        from indexshare.eval.draft import DEFAULT_TOKENS, evaluate_draft
        from indexshare.eval.held_out import evaluate_held_out, some_documents
        from indexshare.eval.repository import DEFAULT_FILES, evaluate_repository
        from indexshare.eval.retrieval import evaluate_retrieval

        given = (self.model, self.tokenizer)
        reports: dict[str, Report] = {}
        prices: dict[str, Report] = {}
        if suite == "held-out" and (lengths is not None or options.ancestor is not None):
            bar.begin("prices")  # the first to find the text too short, or the ancestor no match
            prices["prices"] = self._prices(bar, options, lengths)
            bar.end()
        bar.begin(suite, "files" if suite == "held-out" else "tokens")
        if suite == "held-out":
            documents = some_documents(self.held_out, options.files, options.seed)
            reports[suite] = evaluate_held_out(*given, documents, max_tokens=max_tokens, progress=bar)
        elif suite == "repository":
            reports[suite] = evaluate_repository(
                *given, self.held_out, self.everything,
                context=options.context, files=options.files or DEFAULT_FILES, seed=options.seed, progress=bar,
            )  # fmt: skip
        elif suite == "draft":
            tokens = DEFAULT_TOKENS if options.tokens is None else options.tokens
            reports[suite] = evaluate_draft(*given, self.held_out, max_tokens=tokens, progress=bar)
        else:
            reports[suite] = evaluate_retrieval(
                *given, suite, lengths=lengths, samples=options.samples, attention=options.kinds, seed=options.seed,
                progress=bar,
            )  # fmt: skip
        bar.end()
        return reports | prices

    def _prices(self, bar: MeasuringBar, options: SuiteOptions, lengths: Sequence[int] | None) -> Report:
        from indexshare.eval.prices import DEFAULT_TOKENS, evaluate_prices, load_every_layer_full

        other = load_every_layer_full(
            self.name, self.model, self.tokenizer, options.ancestor, dtype=self.dtype, device=self.device
        )
        return evaluate_prices(
            self.model, self.tokenizer, self.held_out, lengths=lengths, every_layer_full=other,
            max_tokens=DEFAULT_TOKENS if options.tokens is None else options.tokens, progress=bar,
        )  # fmt: skip


def _facts(reports: dict[str, Report]) -> dict[str, Any]:
    """Plain values: the held-out report's own keys at the top, every other report under its name."""
    from indexshare.eval.held_out import HeldOutReport
    from indexshare.eval.retrieval import RetrievalReport

    facts: dict[str, Any] = {}
    for name, report in reports.items():
        if isinstance(report, HeldOutReport):
            facts |= tables.held_out_facts(report)
        elif isinstance(report, RetrievalReport):
            facts[name] = tables.retrieval_facts(report)
        else:
            facts[name] = asdict(report)
    return facts


def _show(model: str, reports: dict[str, Report]) -> None:
    from indexshare.eval.draft import DraftReport
    from indexshare.eval.held_out import HeldOutReport
    from indexshare.eval.prices import PriceReport
    from indexshare.eval.retrieval import RetrievalReport

    for number, report in enumerate(reports.values()):
        if number:
            print()
        if isinstance(report, HeldOutReport):
            tables.show_held_out(model, report)
        elif isinstance(report, PriceReport):
            tables.show_prices(report)
        elif isinstance(report, RetrievalReport):
            tables.show_retrieval(report)
        elif isinstance(report, DraftReport):
            tables.show_draft(report)
        else:
            tables.show_repository(report)
