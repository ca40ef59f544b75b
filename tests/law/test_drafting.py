"""`nano` writes the same text at temperature 0 with drafts as without, token for token."""

from pathlib import Path

import pytest

import indexshare
from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from indexshare.ops.native import native
from indexshare.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
DRAFTERS = ("lookup", "mtp", "both")
GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)


def prompts(count: int) -> list[list[int]]:
    """Pieces of this package's sources from 20 to 900 tokens: below and far beyond the 256 tokens of a selection."""
    tokenizer = Tokenizer.load(ROOT / "indexshare/shipped/nano")
    files = sorted((ROOT / "indexshare").rglob("*.py"))
    rows = [tokenizer.encode(path.read_text(encoding="utf-8")) for path in files]
    rows = [row for row in rows if len(row) > 950]
    lengths = (20, 700, 90, 260, 900, 200, 400)
    return [rows[n % len(rows)][(start := 3 * (n // len(rows))) : start + lengths[n % 7]] for n in range(count)]


def compare(count: int, drafts: tuple[int, ...]) -> None:
    model = indexshare.load_model("nano", dtype="float32").eval()
    inputs = prompts(count)
    plain = [out.token_ids for out in LLM(model, cache_tokens=65_536, max_batch=8).generate(inputs, GREEDY)]
    for drafter in DRAFTERS:
        for number, tokens in enumerate(drafts):
            llm = LLM(model, cache_tokens=65_536, max_batch=8, draft_tokens=tokens, drafter=drafter)
            share = inputs[number :: len(drafts)]
            outputs = llm.generate(share, GREEDY)
            assert [out.token_ids for out in outputs] == plain[number :: len(drafts)], (drafter, tokens)
            assert sum(out.stats.accepted_tokens for out in outputs) > 0


@pytest.mark.skipif(native().library is None, reason=native().reason)
def test_a_few_prompts() -> None:
    compare(6, (3, 7))


@pytest.mark.slow
@pytest.mark.skipif(native().library is None, reason=native().reason)
def test_many_prompts_and_every_number_of_drafts() -> None:
    compare(203, (1, 2, 3, 4, 5, 6, 7))
