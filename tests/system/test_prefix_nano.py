"""`nano` on 4,096 tokens: every beginning that can be taken over gives the cold run's logits, to the last bit."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from indexshare import LLM, SamplingParams
from indexshare.engine.runner import Computed
from indexshare.engine.scheduler import Row

LENGTH = 4096
ONE = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)


def first_logits(llm: LLM, prompt: list[int]) -> tuple[Tensor, int]:
    """Logits behind a prompt, and how many of its tokens were taken over."""
    forward, seen = llm.engine.runner.forward, list[Tensor]()

    def recording(rows: Sequence[Row]) -> Computed:
        computed = forward(rows)
        seen.append(computed.logits.clone())
        return computed

    llm.engine.runner.forward = recording  # type: ignore[method-assign]
    [output] = llm.generate([prompt], ONE)
    llm.engine.runner.forward = forward  # type: ignore[method-assign]
    return seen[-1], output.stats.cached_tokens


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    folder = Path(__file__).resolve().parents[2] / "indexshare" / "engine"
    tokenizer = LLM("nano", cache_tokens=64).tokenizer
    assert tokenizer is not None
    return tokenizer.encode("".join(path.read_text() for path in sorted(folder.glob("*.py"))))[:LENGTH]


@pytest.mark.slow
def test_every_split_of_4096_tokens(prompt: list[int], tmp_path: Path) -> None:
    """Splits within a block take over the same tokens, so one of each block and some around its ends stand for all."""
    assert len(prompt) == LENGTH
    cold, none = first_logits(LLM("nano", cache_tokens=LENGTH + 64, prefix_cache=False), prompt)
    llm, taken = LLM("nano", cache_tokens=3 * LENGTH), set[int]()
    assert llm.engine.prefixes is not None and none == 0
    first = llm.engine.prefixes.first
    llm.generate([prompt], ONE)
    known = llm.engine.prefixes.usable(LENGTH - llm.engine.prefixes.left)
    for split in (*range(1, LENGTH, 64), 255, 256, 257, 2047, 2048, 2049, LENGTH - 1):
        start = prompt[:split] + [(token + 1) % 4096 for token in prompt[split:]]
        llm.engine.prefixes.clear()
        llm.generate([start], ONE)
        logits, cached = first_logits(llm, prompt)
        assert torch.equal(logits, cold), (split, float((logits - cold).abs().max()))
        assert cached == llm.engine.prefixes.usable(min(split, LENGTH - llm.engine.prefixes.left))
        taken.add(cached)
    assert {value for value in taken if value} == set(range(-(-first // 64) * 64, known + 1, 64))


@pytest.mark.slow
def test_4096_tokens_from_files(prompt: list[int], tmp_path: Path) -> None:
    cold, _ = first_logits(LLM("nano", cache_tokens=LENGTH + 64, prefix_cache=False), prompt)
    for expected in (0, (LENGTH - 17) // 64 * 64):
        llm = LLM("nano", cache_tokens=LENGTH + 64, cache_dir=tmp_path)
        logits, cached = first_logits(llm, prompt)
        assert torch.equal(logits, cold) and cached == expected
        assert llm.engine.saved is not None
        llm.engine.saved.flush()
