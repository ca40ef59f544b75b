"""Rounds of drafts in numbers: they add up, kinds of text stand apart, and what is refused is refused first."""

import pytest

from indexshare.config import preset
from indexshare.data.splitting import Document
from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from indexshare.eval.draft_rounds import ALL, evaluate_rounds
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import Tokenizer

TEXT = "settings = {\n    'load_cache': 1234,\n    'read_token_path': 4321,\n}\n" * 4
DOCUMENTS = [Document(name=name, text=TEXT[i:]) for i, name in enumerate(["a.py", "b.py", "c.md"])]


@pytest.fixture(scope="module")
def model(task_tokenizer: Tokenizer) -> GlmMoeDsa:
    return GlmMoeDsa(preset("tiny").replace(vocab_size=task_tokenizer.vocab_size)).initialise(0).eval()


def test_rounds_are_those_of_the_engine(model: GlmMoeDsa, task_tokenizer: Tokenizer) -> None:
    told = []
    found = evaluate_rounds(
        model, task_tokenizer, DOCUMENTS, temperatures=(0.0, 1.0), drafts=3, context=40, written=12,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told[-1] == (3 * 2 * 3 * 12, 3 * 2 * 3 * 12)
    assert [(one.drafter, one.temperature, one.kind) for one in found] == [
        (drafter, temperature, kind)
        for drafter in ("lookup", "mtp", "both")
        for temperature in (0.0, 1.0)
        for kind in (ALL, ".md", ".py")
    ]
    one = next(row for row in found if (row.drafter, row.temperature, row.kind) == ("mtp", 1.0, ".md"))
    llm = LLM(model, tokenizer=task_tokenizer, max_context=52, draft_tokens=3, drafter="mtp")
    prompt = task_tokenizer.encode(DOCUMENTS[2].headed, parse_special=False)[:40]
    stats = llm.generate([prompt], SamplingParams(max_tokens=12, temperature=1.0, seed=2, ignore_eos=True))[0].stats
    assert one.accepted_length is not None
    assert (one.prompts, one.rounds) == (1, stats.draft_rounds)
    assert one.accepted_length.value == pytest.approx(stats.accepted_length)
    assert one.tokens_per_step.value == pytest.approx(12 / (12 - stats.accepted_tokens))
    assert [place.value for place in one.places] == pytest.approx(
        [a / d for a, d in zip(stats.accepted_by_place, stats.drafted_by_place, strict=True)]
    )


def test_all_texts_are_the_sum_of_their_kinds(model: GlmMoeDsa, task_tokenizer: Tokenizer) -> None:
    found = evaluate_rounds(model, task_tokenizer, DOCUMENTS, temperatures=(0.0,), drafts=2, context=32, written=8)
    for drafter in ("lookup", "mtp", "both"):
        whole, *parts = [one for one in found if one.drafter == drafter]
        assert whole.rounds == sum(one.rounds for one in parts)
        assert whole.prompts == sum(one.prompts for one in parts) == 3


def test_one_kind_is_one_row_and_files_are_spread(model: GlmMoeDsa, task_tokenizer: Tokenizer) -> None:
    found = evaluate_rounds(
        model, task_tokenizer, DOCUMENTS[:2], temperatures=(0.0,), drafts=1, files=1, context=32, written=4
    )  # fmt: skip
    assert [(one.kind, one.prompts) for one in found] == [(ALL, 1)] * 3
    assert all(one.tokens_per_step.interval is None for one in found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperatures": (-1.0,)}, "temperature"),
        ({"drafts": 0}, "at least 1 draft"),
        ({"drafts": 99}, "draft_tokens is 99"),
        ({"files": 0}, "1 file"),
        ({"context": 5}, "16 to"),
    ],
)
def test_refusals(model: GlmMoeDsa, task_tokenizer: Tokenizer, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_rounds(model, task_tokenizer, DOCUMENTS, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing to continue"):
        evaluate_rounds(model, task_tokenizer, [Document(name="a", text="x")])
