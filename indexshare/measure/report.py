"""The whole measurement: gate, ceilings, kernels, speed in variants, memory; and the ratios that follow."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import torch

from indexshare import __version__, ops
from indexshare.checkpoint.surgery import full_twin
from indexshare.engine.scheduler import PREFILL_CHUNK
from indexshare.measure.ceilings import Ceilings, ceiling_jobs, ceilings_of
from indexshare.measure.gate import Check, check_engine, check_operations, gate_context
from indexshare.measure.kernels import Kernel, KernelResult, kernel_result, kernels
from indexshare.measure.memory import MemoryResult, measure_memory
from indexshare.measure.runs import Run, SpeedResult, engine_for, random_prompt, request, speed_result
from indexshare.measure.subject import Subject
from indexshare.measure.timing import interleave
from indexshare.model.glm import GlmMoeDsa
from indexshare.planner.machine import describe_machine
from indexshare.planner.memory import count_parameters
from indexshare.step import native_step

PARTS = ("kernels", "speed", "memory")
VARIANTS = ("model", "all-full", "full-attention")


class Teller(Protocol):
    """Receives progress: which measurement runs, and how much of it is done."""

    def begin(self, name: str, unit: str = "tokens") -> None:
        """A measurement starts."""

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` is done."""

    def end(self) -> None:
        """It is over."""


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What to measure.

    Attributes:
        lengths: prompt lengths, each also a depth to decode at; decoding after one token is always measured.
        decode_tokens: tokens written at each depth in each run.
        repeats: most runs of each variant at each length.
        budget_s: a variant at a length is not run again once its runs have taken so many seconds.
        parts: of `PARTS`; variants: of `VARIANTS`.
        kernel_context: keys for the kernels measured alone.
        threads: CPU threads.
    """

    lengths: tuple[int, ...]
    decode_tokens: int
    repeats: int
    budget_s: float
    parts: tuple[str, ...]
    variants: tuple[str, ...]
    kernel_context: int
    threads: int

    def check(self, subject: Subject) -> None:
        """Refuse (ValueError) what this model cannot do, before anything runs."""
        context = subject.config.max_position_embeddings
        for name, values, least in (
            ("--lengths", self.lengths, 1),
            ("--decode-tokens", (self.decode_tokens,), 1),
            ("--repeats", (self.repeats,), 1),
            ("--threads", (self.threads,), 1),
        ):
            if not values or min(values) < least:
                raise ValueError(f"{name} is {' '.join(map(str, values)) or 'empty'}; expected at least {least}")
        longest = max(self.lengths) + self.decode_tokens + 1
        if {"speed", "memory"} & set(self.parts):
            subject.check_fits()
        if longest > context and {"speed", "memory"} & set(self.parts):
            raise ValueError(
                f"--lengths {max(self.lengths)} and {self.decode_tokens} tokens after it need {longest} positions; "
                f"{subject.name} was made for {context}"
            )
        if "kernels" in self.parts and not subject.has_kernels:
            kinds = f"{subject.config.variant.attention.kind!r}, selection {subject.config.variant.selection.kind!r}"
            raise ValueError(
                f"kernels are measured alone for latent attention that selects; {subject.name} has attention {kinds}: "
                "leave kernels out of --parts"
            )
        if "kernels" in self.parts and self.kernel_context <= subject.config.index_topk:
            raise ValueError(
                f"--kernel-context is {self.kernel_context}; {subject.name} selects {subject.config.index_topk} keys, "
                "so expected more than that"
            )


@dataclass(kw_only=True)
class BenchReport:
    """All results; `failed` names the checks because of which nothing was timed."""

    subject: Subject
    settings: BenchSettings
    command: str
    machine: dict[str, Any] = field(default_factory=describe_machine)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    gate: list[Check] = field(default_factory=list)
    ceilings: Ceilings | None = None
    kernels: list[KernelResult] = field(default_factory=list)
    speed: list[SpeedResult] = field(default_factory=list)
    memory: list[MemoryResult] = field(default_factory=list)

    @property
    def failed(self) -> list[Check]:
        """Checks that do not hold."""
        return [check for check in self.gate if not check.passed]

    def to_dict(self) -> dict[str, Any]:
        """One JSON object."""
        config = self.subject.config
        return {
            "date": self.date,
            "command": self.command,
            "machine": self.machine,
            "versions": {"indexshare": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "model": {
                "name": self.subject.name,
                "weights": "random" if self.subject.directory is None else "trained",
                "parameters": count_parameters(config).total,
                "dtype": str(self.subject.dtype).removeprefix("torch."),
                "cache_dtype": self.subject.cache_dtype,
                "index_cache_dtype": self.subject.index_cache_dtype,
                "pattern": config.share_plan.pattern if config.selects else None,
                "index_topk": config.index_topk if config.selects else None,
            },
            "settings": vars(self.settings) | {"prefill_chunk": PREFILL_CHUNK},
            "operations": [*ops.explain(), native_step.explain()],
            "gate": {"passed": not self.failed, "checks": [check.to_dict() for check in self.gate]},
            "ceilings": None if self.ceilings is None else self.ceilings.to_dict(),
            "kernels": [result.to_dict() for result in self.kernels],
            "speed": [result.to_dict() for result in self.speed],
            "ratios": ratios(self.speed),
            "growth": growth(self.speed),
            "memory": [result.to_dict() for result in self.memory],
        }


def ratios(speed: Sequence[SpeedResult]) -> list[dict[str, Any]]:
    """How many times as long the other variants take, by length: medians over the model's own."""
    own = {result.length: result for result in speed if result.variant == "model"}
    found = []
    for result in speed:
        mine = own.get(result.length)
        if result.variant == "model" or mine is None:
            continue
        prefill = None
        if result.prefill_s is not None and mine.prefill_s is not None:
            prefill = result.prefill_s.median / mine.prefill_s.median
        decode = result.decode_s.median / mine.decode_s.median
        found.append({"length": result.length, "against": result.variant, "prefill": prefill, "decode": decode})
    return found


def growth(speed: Sequence[SpeedResult]) -> list[dict[str, Any]]:
    """Prefill time of one token at a length over that at the next shorter one, for each variant."""
    found = []
    for variant in VARIANTS:
        timed = sorted((r.length, r.prefill_s.median) for r in speed if r.variant == variant and r.prefill_s)
        for (short, short_s), (long, long_s) in itertools.pairwise(timed):
            ratio = (long_s / long) / (short_s / short)
            found.append({"variant": variant, "from": short, "to": long, "time_per_token": ratio})
    return found


def run_bench(subject: Subject, settings: BenchSettings, command: str, teller: Teller) -> BenchReport:
    """Run all measurements; nothing is timed if a check fails.

    Raises:
        ValueError: settings that this model cannot meet.
    """
    settings.check(subject)
    torch.set_num_threads(settings.threads)
    report = BenchReport(subject=subject, settings=settings, command=command)
    teller.begin("checking against the references", unit="checks")
    report.gate = check_operations(subject.config, subject.dtype)
    model: GlmMoeDsa | None = None
    if "speed" in settings.parts:
        model = subject.load()
        context = gate_context(subject.config)
        report.gate.append(check_engine(engine_for(model, context, 1)))
    teller.end()
    if report.failed:
        return report
    _measure_kernels(report, teller)
    if model is not None:
        _measure_speed(report, model, teller)
    if "memory" in settings.parts:
        del model  # its memory is needed
        for length in settings.lengths:
            teller.begin(f"memory, {length:,} tokens")
            report.memory.append(
                measure_memory(subject, length, settings.decode_tokens, settings.threads, on_prefill=teller)
            )
            teller.end()
    return report


def _measure_kernels(report: BenchReport, teller: Teller) -> None:
    """Ceilings, and in turn with them the kernels if they are wanted."""
    subject, settings = report.subject, report.settings
    alone: list[Kernel] = []
    if "kernels" in settings.parts:
        alone = kernels(subject.config, subject.dtype, settings.kernel_context)
    jobs = ceiling_jobs(subject.dtype) | {kernel.name: kernel.seconds for kernel in alone}
    teller.begin("ceilings and kernels" if alone else "ceilings", unit="runs")
    total = len(jobs) * settings.repeats
    done = iter(range(total))
    results = interleave(jobs, settings.repeats, on_run=lambda *_: teller(next(done), total))
    teller.end()
    report.ceilings = ceilings_of(results)
    report.kernels = [kernel_result(kernel, results[kernel.name], report.ceilings) for kernel in alone]


def _measure_speed(report: BenchReport, model: GlmMoeDsa, teller: Teller) -> None:
    """Every variant at every length, variants in turn."""
    settings, subject = report.settings, report.subject
    models = {"model": model, "full-attention": model}
    if "all-full" in settings.variants and model.plan.shared_layers:
        models["all-full"] = full_twin(model)
    wanted = [name for name in VARIANTS if name in models and name in settings.variants]
    for length in (0, *settings.lengths):
        jobs: dict[str, Callable[[], Run]] = {}
        for name in wanted:
            full = name == "full-attention"
            jobs[name] = _request_job(subject, models[name], length, settings.decode_tokens, full, teller)

        def on_run(name: str, turn: int, length: int = length) -> None:
            teller.begin(f"{name}, {length:,} tokens, run {turn + 1}")

        runs = interleave(jobs, settings.repeats, budget_s=settings.budget_s, on_run=on_run)
        assert report.ceilings is not None
        for name in wanted:
            config, width = models[name].config, subject.element_bytes
            found = speed_result(name, config, width, length, runs[name], report.ceilings, subject.row_bytes)
            report.speed.append(found)


def _request_job(
    subject: Subject, model: GlmMoeDsa, length: int, decode_tokens: int, full_attention: bool, teller: Teller
) -> Callable[[], Run]:
    """A request of `length` tokens, in an engine that is warm."""
    prompt = random_prompt(model.config, max(length, 1))
    llm = engine_for(model, len(prompt), decode_tokens, full_attention=full_attention, caches=subject.caches)
    request(llm, prompt[: PREFILL_CHUNK + 1], 1)

    def job() -> Run:
        run = request(llm, prompt, decode_tokens, on_prefill=teller)
        teller.end()
        return run

    return job
