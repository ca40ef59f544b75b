"""The options of `indexshare eval`, in groups: what is scored, how much of each suite, who is asked, how it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from indexshare.eval.suites.base import SuiteSettings


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Which text is scored.

    Parameters
    ----------
    text
        Score this folder (or file). By default the model's own held-out files, by its training.json.
    pattern
        Files of --text, such as `*.md` (in any folder); may be given several times. By default those that the model was
        trained on, by its training.json, or `*.py`.
    packages
        Installed packages that the model was not trained on, separated by commas: score their files in place of the
        model's held-out ones.
    """

    text: Path | None = None
    pattern: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    packages: str | None = None

    @property
    def unseen(self) -> list[str]:
        """The names in `packages`."""
        return [name.strip() for name in (self.packages or "").split(",") if name.strip()]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How models run.

    Parameters
    ----------
    dtype
        float32 or bfloat16; unless given, float32 on a CPU, else as stored.
    weights
        int8 or int4: measure the model with its matrices in 8 or 4 bits per weight, as `generate --weights` runs it.
    cache_dtype
        fp8, int8 or bfloat16: measure the model with its cache in that type, as `generate --cache-dtype` runs it.
    index_cache_dtype
        The same for the index keys alone.
    device
        Where to run: cpu, cuda, cuda:1, ...
    """

    dtype: str | None = None
    weights: str | None = None
    cache_dtype: str | None = None
    index_cache_dtype: str | None = None
    device: str = "cpu"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class QuestionOptions:
    """How the long questions are asked, and who is asked beside the models named.

    Parameters
    ----------
    form
        base (a text to be continued) or chat (a user's message; a model's chat template, a server's chat completions).
    answers
        Keep answers in this file as they come, and ask only what is not in it: the same command goes on after an
        interruption. Answers of other models, seeds or settings are kept apart.
    parallel
        Questions at a time: a batch of a model, or so many requests to a server.
    answer_tokens
        Most tokens of an answer, in place of what each kind needs: for models that think first.
    url
        Ask a server that speaks OpenAI's API, too or alone.
    model_name
        A model on that server; may be given several times. By default the first that it lists.
    api_key_env
        The environment variable that holds the key for that server.
    tokenizer
        Model whose tokenizer counts the tokens of texts, so that all are asked the same questions: by default that of
        the first model; a server's tokens are estimated from what it says of short texts.
    export_tasks
        Ask nobody: write the questions into this folder as tasks of lm-evaluation-harness.
    """

    form: str = "base"
    answers: Path | None = None
    parallel: int = 1
    answer_tokens: int | None = None
    url: str | None = None
    model_name: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    api_key_env: str | None = None
    tokenizer: str | None = None
    export_tasks: Path | None = None

    def check(self, models: tuple[str, ...]) -> None:
        """Refuse (ValueError) options that say nothing together."""
        for name, value in (("--model-name", self.model_name), ("--api-key-env", self.api_key_env)):
            if value and self.url is None:
                raise ValueError(f"{name} goes with --url, the address of a server")
        if not models and self.url is None and (self.export_tasks is None or self.tokenizer is None):
            raise ValueError(
                "name a model (a shipped one or a directory), or give the --url of a server; "
                "--export-tasks needs a model or a --tokenizer"
            )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """How much of each suite is run.

    Parameters
    ----------
    lengths
        Context lengths in tokens, separated by commas (2048,8192 or 2K,8K). With them `held-out` also states the prices
        of sparsity and of sharing at each; `needle`, `recall` and the long questions use 1K,2K,4K,8K unless given.
    ancestor
        A model whose layers are all Full, trained on the same text: `held-out` states the price of sharing against it.
    attention
        Kinds of attention that `needle` and `recall` compare: selection, full, recent (the most recent tokens).
    samples
        Questions of `needle` and `recall` at each length and depth, and of each kind of long questions at each length.
    tokens
        Most held-out tokens that the prices (at each length) and `draft` score: 65,536 unless given.
    files
        Most files that `held-out` and `repository` score, drawn by the seed, and that `draft` continues: all, 24 and 12
        unless given.
    context
        Tokens of context for `repository`: 16,384, or what the model reads, unless given. For what `draft` continues:
        1,024.
    seed
        Of the generated texts and of the choice of files.
    max_tokens
        Longest context of `held-out`, 8,192 or what the model reads unless given; longer files are scored in stretches.
    temperatures
        At which `draft` lets drafts be verified, separated by commas.
    drafts
        Tokens that `draft` lets be guessed in a round.
    """

    lengths: str | None = None
    ancestor: str | None = None
    attention: str = "selection,full,recent"
    samples: int = 5
    tokens: int | None = None
    files: int | None = None
    context: int | None = None
    seed: int = 0
    max_tokens: int | None = None
    temperatures: str = "0,1"
    drafts: int = 4

    def settings(self, asked: QuestionOptions) -> SuiteSettings:
        """The suites' form of these options; ValueError for lists that are none."""
        from indexshare.eval.suites.base import SuiteSettings

        return SuiteSettings(
            lengths=parse_lengths(self.lengths),
            ancestor=self.ancestor,
            attention=tuple(name.strip() for name in self.attention.split(",")),
            samples=self.samples,
            tokens=self.tokens,
            files=self.files,
            context=self.context,
            seed=self.seed,
            max_tokens=self.max_tokens,
            form=asked.form,
            answers=asked.answers,
            answer_tokens=asked.answer_tokens,
            parallel=asked.parallel,
            temperatures=parse_temperatures(self.temperatures),
            drafts=self.drafts,
        )


def parse_lengths(text: str | None) -> tuple[int, ...] | None:
    """The lengths of a comma-separated list, `2K` meaning 2048; ValueError for anything else."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    numbers = [(part[:-1], 1024) if part[-1:] in ("k", "K") else (part, 1) for part in parts]
    if not all(number.isascii() and number.isdigit() for number, _ in numbers):
        raise ValueError(f"--lengths is {text!r}; expected numbers of tokens separated by commas: 2048,8192 or 2K,8K")
    return tuple(int(number) * unit for number, unit in numbers)


def parse_temperatures(text: str) -> tuple[float, ...]:
    """The numbers of a comma-separated list; ValueError for anything else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--temperatures is {text!r}; expected numbers separated by commas: 0,0.5,1") from None
