"""Reports as plain values, and as one self-contained page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from indexshare.config.share_plan import SharePlan
from indexshare.sharing.explain import Explanation
from indexshare.sharing.overlap import OverlapReport
from indexshare.text.files import check_can_write, replacing
from indexshare.text.tokenizer import Tokenizer

_DIGITS = 5
_PLACE = "/*DATA*/null"


def report_facts(report: OverlapReport) -> dict[str, Any]:
    """A report as JSON has it."""
    facts = asdict(report)
    del facts["plan"]
    facts["full"] = list(report.plan.full_layers)
    for health, entry in zip(report.health, facts["health"], strict=True):
        entry["dead_heads"] = list(health.dead_heads)
    return {"pattern": report.plan.pattern} | rounded(facts)


def explanation_facts(explanation: Explanation, tokenizer: Tokenizer) -> dict[str, Any]:
    """An explanation as JSON has it, with the text of every token."""
    facts = asdict(explanation)
    facts["words"] = [tokenizer.decode([token]) for token in explanation.tokens]
    del facts["tokens"]
    return rounded(facts)


def rounded(value: Any) -> Any:
    """Plain values, numbers to five significant digits; tuples become lists."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def check_page(file: Path) -> None:
    """Refuse (ValueError) a page that could not be written, before the work that it is to show."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"the page is {file.name!r}; expected a name that ends in .html")
    check_can_write(file, replaces=(b"<!doctype html", b"<!DOCTYPE html", b"<html"))


def write_page(
    file: Path, *, model: str, plan: SharePlan, reports: Sequence[dict[str, Any]], explained: dict[str, Any] | None
) -> None:
    """Write a page that needs nothing else: the matrices with a slider over positions, and the explanation if any.

    Args:
        file: where to.
        model: as the user called it.
        plan: the pattern that is drawn first.
        reports: of `report_facts`, one for each length.
        explained: of `explanation_facts`.
    """
    check_page(file)
    data = {"model": model, "pattern": plan.pattern, "reports": list(reports), "explain": explained}
    # Inside a script nothing may look like its end.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", " ").replace("\u2029", " ")
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    before, after = template.split(_PLACE)
    with replacing(file) as temporary:
        temporary.write_text(before + text + after, encoding="utf-8", errors="backslashreplace")
