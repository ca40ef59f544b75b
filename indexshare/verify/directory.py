"""A model directory looked at by itself: its tensors and their values, experts and indexers, tokenizer and template.

Tensors are read one after the other and forgotten, so any size of checkpoint can be looked at.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from indexshare.checkpoint.load import parse_dtype
from indexshare.checkpoint.matching import Match, Matching, match_tensors
from indexshare.checkpoint.tensor_files import TensorReader, read_directory
from indexshare.config.model import ModelConfig
from indexshare.ops.quant import dequantize_block_fp8
from indexshare.text.chat_template import ChatTemplate

Level = Literal["error", "warning"]
_EXPERT = re.compile(r"layers\.(\d+)\.mlp\.experts\.(?:(\d+)\.)?(\w+)")
_BIAS = re.compile(r"layers\.(\d+)\.mlp\.gate\.e_score_correction_bias$")
_INDEXER = re.compile(r"layers\.(\d+)\.self_attn\.indexer\.(wq_b|wk|weights_proj)\.weight$")
_HUGE = 1e4  # weights beyond it are damage, or a scale that was not applied


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is wrong (`error`) or that deserves a look (`warning`), in one sentence."""

    level: Level
    place: str
    says: str


def check_directory(directory: Path, progress: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Everything found in a model directory; an empty list is a clean bill.

    Raises:
        FileNotFoundError, ValueError: there is no configuration to go by, or it cannot be used.
    """
    config = ModelConfig.load(directory)
    findings: list[Finding] = []
    try:
        matching = match_tensors(config, config, read_directory(directory))
    except ValueError as error:
        findings.append(Finding(level="error", place="tensors", says=" ".join(str(error).split())))
    else:
        findings += _dropped(matching)
        findings += _types(config, matching)
        findings += _values(config, matching, progress)
    return [
        *findings,
        *_idle(config),
        *_tokenizer(directory, config),
        *_template(directory),
        *_stops(directory, config),
    ]


def _idle(config: ModelConfig) -> Iterator[Finding]:
    """Whether the indexers are ever run."""
    if config.selects and config.index_topk >= config.max_position_embeddings:
        says = (
            f"index_topk {config.index_topk} is not below the context of {config.max_position_embeddings}: no indexer "
            "ever chooses, every text is attended in full"
        )
        yield Finding(level="warning", place="config.json", says=says)


def _dropped(matching: Matching) -> Iterator[Finding]:
    """Tensors that loading leaves out, by reason."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    repeated = {copy.name for copy, _ in matching.repeats}  # compared below
    for name, reason in matching.dropped.items():
        if name not in repeated:
            by_reason[reason].append(name)
    for reason, names in by_reason.items():
        says = f"{len(names)} tensors are not used ({reason}), {names[0]} for one"
        yield Finding(level="warning", place="tensors", says=says)


def _types(config: ModelConfig, matching: Matching) -> Iterator[Finding]:
    """Whether most matrices are of another type than the configuration states."""
    if not config.dtype_is_stated:
        return
    stated = parse_dtype(config.dtype)
    matrices = [m.stored for m in matching.matches if m.scale is None and len(m.stored.shape) > 1]
    others = [stored for stored in matrices if stored.dtype != stated]
    if 2 * len(others) > len(matrices):  # a few are kept more precisely on purpose
        found = ", ".join(sorted({str(stored.dtype).removeprefix("torch.") for stored in others}))
        says = f"{len(others)} matrices are stored as {found}, config.json says {config.dtype}, as {others[0].name}"
        yield Finding(level="warning", place="tensors", says=says)


def _values(config: ModelConfig, matching: Matching, progress: Callable[[int, int], None] | None) -> list[Finding]:
    """Read every tensor once."""
    findings: list[Finding] = []
    silent = defaultdict[int, set[int]](set)  # layer -> experts that add nothing
    with TensorReader() as reader:
        for number, match in enumerate(sorted(matching.matches, key=lambda m: (m.stored.file, m.stored.begin))):
            name = match.stored.name
            values, scale = _read(reader, match, matching.block)
            findings += _numbers(name, values, scale)
            for layer, expert in _silent_experts(name, values):
                silent[layer].add(expert)
            if (bias := _BIAS.search(name)) and int(bias[1]) < config.num_layers_with_draft:
                findings += _never_chosen(config, name, values)
            if (part := _INDEXER.search(name)) and not values.any():
                says = f"{part[2]} is zero: all scores tie, and the indexer chooses the first tokens of every text"
                findings.append(Finding(level="error", place=name, says=says))
            if progress is not None:
                progress(number + 1, len(matching.matches))
    findings += _repeats(matching)
    for layer, experts in sorted(silent.items()):
        says = f"{len(experts)} experts add nothing, their weights are zero: {_some(sorted(experts))}"
        findings.append(Finding(level="warning", place=f"layer {layer}", says=says))
    return findings


def _repeats(matching: Matching) -> Iterator[Finding]:
    """Tensors stored twice that must be equal."""
    with TensorReader() as reader:
        for copy, original in matching.repeats:
            if not torch.equal(reader.read(copy).float(), reader.read(original).float()):
                says = f"it differs from {original.name}, which it must repeat"
                yield Finding(level="error", place=copy.name, says=says)


def _read(reader: TensorReader, match: Match, block: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    values = reader.read(match.stored)
    if match.scale is None:
        return values.float(), None
    scale = reader.read(match.scale).float()
    return dequantize_block_fp8(values, scale, block=block), scale


def _numbers(name: str, values: Tensor, scale: Tensor | None) -> Iterator[Finding]:
    if scale is not None and not bool((scale > 0).all() and scale.isfinite().all()):
        yield Finding(level="error", place=name, says="a block scale is not a positive number")
    bad = int((~values.isfinite()).sum())
    if bad:
        yield Finding(level="error", place=name, says=f"{bad} of {values.numel()} values are NaN or infinite")
    elif values.numel() and float(values.abs().max()) > _HUGE:
        says = f"the largest value is {float(values.abs().max()):.3g}: damaged, or its scale was not applied"
        yield Finding(level="warning", place=name, says=says)
    if name.endswith("norm.weight") and not values.any():
        yield Finding(level="error", place=name, says="a norm's weight is zero: nothing passes it")


def _silent_experts(name: str, values: Tensor) -> Iterator[tuple[int, int]]:
    """Layer and number of experts with a projection of zeros."""
    match = _EXPERT.search(name)
    if match is None:
        return
    layer = int(match[1])
    if match[2] is not None:
        if not values.any():
            yield layer, int(match[2])
    elif values.ndim == 3:
        for expert in (~values.flatten(1).any(1)).nonzero()[:, 0].tolist():
            yield layer, expert


def _never_chosen(config: ModelConfig, name: str, bias: Tensor) -> Iterator[Finding]:
    """Experts that no score can bring in: scores lie between 0 and 1, so a bias 1 below the k-th best of
    its group is too low."""
    groups, chosen = bias.view(config.n_group, -1), config.num_experts_per_tok
    if groups.shape[1] <= chosen:
        return  # a group may win as a whole
    worst_winner = groups.sort(dim=-1, descending=True).values[:, chosen - 1, None]
    dead = (groups + 1.0 <= worst_winner).flatten().nonzero()[:, 0].tolist()
    if dead:
        says = f"{len(dead)} experts can never be chosen, their correction bias is too low: {_some(dead)}"
        yield Finding(level="warning", place=name, says=says)


def _tokenizer(directory: Path, config: ModelConfig) -> Iterator[Finding]:
    """The tokenizer's ids against the vocabulary."""
    from indexshare.text.tokenizer import Tokenizer

    if not (directory / "tokenizer.json").is_file():
        yield Finding(level="warning", place="tokenizer.json", says="absent: texts cannot be given, only token ids")
        return
    try:
        tokenizer = Tokenizer.load(directory)
    except ValueError as error:
        yield Finding(level="error", place="tokenizer.json", says=str(error))
        return
    if tokenizer.vocab_size > config.vocab_size:
        says = f"it makes ids up to {tokenizer.vocab_size - 1}, the model has {config.vocab_size} embeddings"
        yield Finding(level="error", place="tokenizer.json", says=says)
    own, stated = set(tokenizer.eos_ids), set(config.eos_token_ids)
    if own and stated and not own & stated:
        says = f"its token that ends a text is {min(own)}, config.json's eos_token_id is {sorted(stated)}"
        yield Finding(level="warning", place="tokenizer.json", says=says)
    sample = "def f(x):\n    return x + 1  # ümläut 漢字\n"
    if tokenizer.decode(tokenizer.encode(sample)) != sample:
        yield Finding(level="warning", place="tokenizer.json", says="a text does not come back as it was")


def _template(directory: Path) -> Iterator[Finding]:
    """Whether the chat template is valid, and its special tokens are in the tokenizer."""
    if not (directory / "tokenizer.json").is_file():
        return
    try:
        template = ChatTemplate.load(directory)
    except ValueError as error:
        yield Finding(level="error", place="chat template", says=str(error))
        return
    vocabulary = (directory / "tokenizer.json").read_text(encoding="utf-8", errors="replace")
    written = set(re.findall(r"<\|[\w-]+\|>", template.source if template else ""))
    missing = [token for token in sorted(written) if json.dumps(token) not in vocabulary]
    if missing:
        says = f"it writes {_some(missing)}, which the tokenizer does not have as one token"
        yield Finding(level="warning", place="chat template", says=says)


def _stops(directory: Path, config: ModelConfig) -> Iterator[Finding]:
    """Ids that end a text, in both files that name them."""
    named: dict[str, tuple[int | None, ...]] = {
        "bos_token_id": (config.bos_token_id,), "eos_token_id": config.eos_token_ids,
        "pad_token_id": (config.pad_token_id,),
    }  # fmt: skip
    for key, stated in named.items():
        outside = [i for i in stated if i is not None and i >= config.vocab_size]
        if outside:
            says = f"{key} {outside[0]} is outside the vocabulary of {config.vocab_size}"
            yield Finding(level="error", place="config.json", says=says)
    if not config.eos_token_ids:
        yield Finding(level="warning", place="config.json", says="no eos_token_id: texts end at the token limit only")
    file = directory / "generation_config.json"
    if not file.is_file():
        return
    try:
        facts: Any = json.loads(file.read_text(encoding="utf-8"))
        said = facts.get("eos_token_id")
    except (ValueError, AttributeError):
        yield Finding(level="error", place=file.name, says="not a JSON object")
        return
    ids = said if isinstance(said, list) else [] if said is None else [said]
    if ids and set(ids) != set(config.eos_token_ids):
        says = f"eos_token_id {ids} differs from config.json's {list(config.eos_token_ids)}; both are heeded"
        yield Finding(level="warning", place=file.name, says=says)


def _some(items: list[Any], most: int = 6) -> str:
    shown = ", ".join(map(str, items[:most]))
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
