"""A prompt and its continuation with all of the cache in memory, and with latents limited to a part of it.

    python benchmarks/spill.py --length 262144 --share 0.25 --folder /var/tmp

Three caches hold the same prompt: all in memory, in files with fetching for the sharing group at once, and in files
layer by layer. Each reads it alone; then all write in turn (medians). The files of a small model fit into the memory
that the system keeps of files, which flatters reading: `--drop` tells it to forget them before every token.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from indexshare.cache.blocks import BlockTable
from indexshare.cache.codecs import codecs_by_stream
from indexshare.cache.paged import PagedCache
from indexshare.cache.spilled import SpilledCache
from indexshare.measure.runs import random_prompt
from indexshare.measure.subject import Subject
from indexshare.model.glm import GlmMoeDsa
from indexshare.step.native_step import NativeStep

BLOCK, CHUNK = 64, 2048


class Contender:
    """A cache with a prompt in it, and the step that writes behind it."""

    def __init__(self, model: GlmMoeDsa, cache: PagedCache, prompt: list[int]) -> None:
        self.model, self.cache, self.prompt = model, cache, prompt
        self.table, self.step = BlockTable(range(cache.num_blocks)), NativeStep(model)
        self.tokens: list[int] = []
        self.times: list[float] = []

    @torch.inference_mode()
    def read(self) -> Iterator[float]:
        """Seconds of each chunk of the prompt."""
        for past in range(0, len(self.prompt), CHUNK):
            part = torch.tensor(self.prompt[past : past + CHUNK])
            began = time.perf_counter()
            hidden = self.model.trunk(part, self.cache.view([self.table], [(past, len(part))]))
            assert self.cache.flush() == {}
            yield time.perf_counter() - began
        self.tokens.append(int(self.model.logits(hidden[-1:]).argmax()))

    @torch.inference_mode()
    def write(self) -> None:
        """One more token."""
        began = time.perf_counter()
        view = self.cache.view([self.table], [(len(self.prompt) + len(self.tokens) - 1, 1)])
        logits = self.step([self.tokens[-1]], view)[1]
        assert self.cache.flush() == {}
        self.times.append(time.perf_counter() - began)
        self.tokens.append(int(logits.argmax()))


def build(model: GlmMoeDsa, kind: str, tokens: int, share: float, folder: Path, codec: str | None) -> PagedCache:
    """The cache of one contender; `share` of the latents' bytes are memory, what one layer's past takes included."""
    config, dtype, blocks = model.config, model.embed_tokens.weight.dtype, tokens // BLOCK + 2
    codecs = codecs_by_stream(config, codec, None)
    if kind == "memory":
        return PagedCache(config, blocks, BLOCK, dtype, codecs=codecs)
    places = int((share - 1 / config.num_hidden_layers) * tokens)
    least = 16 * config.index_topk + 2 * CHUNK
    if places < least:
        raise SystemExit(f"--share {share:g} of {tokens:,} tokens leaves {places:,} in memory; a step needs {least:,}")
    return SpilledCache(
        config, blocks, BLOCK, dtype, codecs=codecs, places=places, folder=folder, by_layer=kind == "layers"
    )


def drop(cache: PagedCache) -> None:
    """Have the system forget what it keeps of a cache's files."""
    for group in cache.groups.values() if isinstance(cache, SpilledCache) else ():
        os.fsync(group.file_number)
        os.posix_fadvise(group.file_number, 0, 0, os.POSIX_FADV_DONTNEED)


def report(kind: str, contender: Contender, read_s: float, counts: dict[str, Any]) -> dict[str, Any]:
    """What one contender did."""
    return {
        "kind": kind,
        "read_s": read_s,
        "token_ms": 1e3 * statistics.median(contender.times),
        "tokens": contender.tokens,
        "counts": counts,
    }


def main() -> None:
    """Print one JSON object for each cache, and one of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="benchmarks/s.json")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--length", type=int, default=262144)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--codec")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--kinds", nargs="+", default=["memory", "groups", "layers"])
    parser.add_argument("--drop", action="store_true")
    arguments = parser.parse_args()
    model = Subject.find(arguments.model, arguments.dtype).load()
    prompt, total = random_prompt(model.config, arguments.length), arguments.length + arguments.tokens
    contenders, read_s = {}, {}
    for kind in arguments.kinds:
        cache = build(model, kind, total, arguments.share, arguments.folder, arguments.codec)
        contenders[kind] = Contender(model, cache, prompt)
        read_s[kind] = 0.0
        for number, seconds in enumerate(contenders[kind].read(), 1):
            read_s[kind] += seconds
            if number % 16 == 0:
                print(f"{kind}: {number * CHUNK:,} tokens read in {read_s[kind]:,.0f} s", flush=True)
    before = {kind: each.cache.count() for kind, each in contenders.items()}
    for _ in range(arguments.tokens):
        for each in contenders.values():
            if arguments.drop:
                drop(each.cache)
            each.write()
    found = {}
    for kind, each in contenders.items():
        start, end = before[kind], each.cache.count()
        counts = {} if start is None or end is None else {"reading": vars(start), "writing": vars(end.since(start))}
        found[kind] = report(kind, each, read_s[kind], counts)
        print(json.dumps(found[kind]), flush=True)
    if "memory" in found:
        of_memory = found["memory"]
        ratios = {
            kind: {
                "read": each["read_s"] / of_memory["read_s"],
                "token": each["token_ms"] / of_memory["token_ms"],
                "same_tokens": each["tokens"] == of_memory["tokens"],
            }
            for kind, each in found.items()
        }
        print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
