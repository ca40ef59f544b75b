"""From the measurements of `peers.py` to one report, one table and one plot."""

import statistics
from datetime import UTC, datetime
from typing import Any

from contenders import PROGRAMS, Variant

FIGURES = ("prefill_s", "decode_ms", "peak_bytes")
PACKED = {
    "int8": "Matrices in about eight bits: int8 with a scale per group here, Q8_0 in llama.cpp.",
    "int4": "Matrices in about four bits: int4 with a scale per group here (indexer and head in eight, embedding and"
    " router as they were), Q4_0 in llama.cpp for all of them.",
}
SETTINGS = ("program", "threads", "flash", "batch", "weights")


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "runs": len(values)}


def figures_of(result: dict[str, Any], length: int) -> dict[str, float]:
    """The figures of one run: the decode time is the median over its tokens; at length 0 there is no prefill."""
    found = {"decode_ms": 1000 * statistics.median(result["decode_s"]), "peak_bytes": result["peak_bytes"]}
    return found | ({"prefill_s": result["prefill_s"]} if length else {})


def build_report(records: list[dict[str, Any]], about: dict[str, Any]) -> dict[str, Any]:
    """Everything, as plain values: by length and contender the spreads and the runs, and the best of each program."""
    results = []
    for length in sorted({record["identity"]["length"] for record in records}):
        there = [record for record in records if record["identity"]["length"] == length]
        contenders = []
        for setting in dict.fromkeys(_setting(record) for record in there):
            runs = [record for record in there if _setting(record) == setting]
            contenders.append(_contender(Variant(**dict(zip(SETTINGS, setting, strict=True))), length, runs))
        results.append({"length": length, "contenders": contenders, "best": _best(contenders)})
    times = sorted(record["at"] for record in records)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "measured": {"from": times[0], "to": times[-1]} if times else None,
        **about,
        "results": results,
    }


def _setting(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record["identity"][name] for name in SETTINGS)


def _contender(variant: Variant, length: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    done = [figures_of(record["result"], length) for record in runs if "result" in record]
    facts: dict[str, Any] = {"program": variant.program, "label": variant.label}
    for name in FIGURES:
        values = [figures[name] for figures in done if name in figures]
        facts[name] = spread(values) if values else None
    facts["failures"] = [record["failure"] for record in runs if "failure" in record]
    return facts | {"runs": [{k: record[k] for k in record if k != "identity"} for record in runs]}


def _best(contenders: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each figure, each program's lowest median, with the settings it was reached with; and how many times ours."""
    found: dict[str, dict[str, Any]] = {}
    for name in FIGURES:
        best: dict[str, Any] = {}
        for contender in contenders:
            value, program = contender[name], contender["program"]
            if value is not None and (program not in best or value["median"] < best[program]["median"]):
                best[program] = value | {"label": contender["label"]}
        ours = best.get("indexshare")
        for program, value in best.items():
            value["times_indexshare"] = None if ours is None else value["median"] / ours["median"]
            best[program] = value
        found[name] = best
    return found


def table(report: dict[str, Any]) -> str:
    """Markdown: median (range) of every program at its best, and how many times as much as ours the others take."""
    peers = PROGRAMS[1:]
    ratios = [f"{name} / indexshare" for name in peers]
    lines = ["| tokens | figure | " + " | ".join([*PROGRAMS, *ratios]) + " |", "|---" * (2 + 3 + len(peers)) + "|"]
    units = {
        "prefill_s": ("prefill, s", 1.0),
        "decode_ms": ("decode, ms a token", 1.0),
        "peak_bytes": ("peak, GB", 1e9),
    }
    for result in report["results"]:
        for name, (title, unit) in units.items():
            best = result["best"][name]
            if not best:
                continue
            cells = [_cell(best.get(program), unit) for program in PROGRAMS]
            cells += [_ratio(best.get(program)) for program in peers]
            lines.append(f"| {result['length']:,} | {title} | " + " | ".join(cells) + " |")
    lines += ["", *_remarks(report)]
    return "\n".join(lines)


def _cell(value: dict[str, Any] | None, unit: float) -> str:
    if value is None:
        return "-"
    median, low, high = (f"{value[key] / unit:.3g}" for key in ("median", "low", "high"))
    shown = median if value["runs"] == 1 else f"{median} ({low} to {high})"
    if not value["label"].startswith("llama.cpp"):
        return shown
    return shown + (", no FA" if "no flash" in value["label"] else ", FA")


def _ratio(value: dict[str, Any] | None) -> str:
    return "-" if value is None or value["times_indexshare"] is None else f"{value['times_indexshare']:.2f}"


def _remarks(report: dict[str, Any]) -> list[str]:
    """What a reader of the table must know."""
    machine, settings = report["machine"], report["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    measured = report["measured"] or {"from": "-", "to": "-"}
    lines = [
        f"{machine['processor']}, {machine['cores']} cores; {versions}.",
        f"Measured {measured['from']} to {measured['to']}, the machine's load at each start in the JSON.",
        f"`{report['command']}`",
        "Medians (range) of processes in turn; FA: llama.cpp's flash attention, the faster of on and off is shown.",
    ]
    if note := PACKED.get(settings.get("weights", "bf16")):
        lines.append(note)
    lines += [f"{name} was absent; to have it: {command}" for name, command in report["absent"].items()]
    limit = settings["transformers_up_to"]
    if any(result["length"] > limit for result in report["results"]):
        lines.append(
            f"transformers was run up to {limit:,} tokens: beyond, it needs more memory than most machines have."
        )
    for result in report["results"]:
        for contender in result["contenders"]:
            if contender["failures"]:
                lines.append(f"{contender['label']} at {result['length']:,} tokens: {contender['failures'][0]}.")
    return lines
