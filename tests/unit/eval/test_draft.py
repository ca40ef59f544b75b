"""Draft agreement: the right places are compared, and what counts as accepted."""

import itertools

import pytest
import torch

from indexshare.config import preset
from indexshare.data.splitting import Document
from indexshare.eval.draft import _agreement, evaluate_draft
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import END_OF_TEXT, Tokenizer
from tests.unit.eval.fakes import FakeModel, Successor

TEXT = "settings = {\n    'load_cache': 1234,\n    'read_token_path': 4321,\n}\n" * 3
DOCUMENTS = [Document(name=f"m{i}.py", text=TEXT[i:]) for i in range(3)]


def ids_of(document: Document, tokenizer: Tokenizer) -> list[int]:
    return [*tokenizer.encode(document.headed, parse_special=False), tokenizer.id_of(END_OF_TEXT)]


def test_a_draft_layer_that_says_what_the_trunk_says(task_tokenizer: Tokenizer) -> None:
    report = evaluate_draft(Successor(task_tokenizer), task_tokenizer, DOCUMENTS, steps=3)
    assert [figure.value for figure in report.agreement] == [1.0, 1.0, 1.0]
    assert report.files == 3 and report.tokens == sum(len(ids_of(d, task_tokenizer)) for d in DOCUMENTS)


def test_counts_against_a_loop(task_tokenizer: Tokenizer) -> None:
    """Trunk: the id after the current one. Draft: the same, but 0 after ids it is blind to."""
    size = task_tokenizer.vocab_size
    blind = frozenset(range(0, size, 3))
    report = evaluate_draft(Successor(task_tokenizer, blind), task_tokenizer, DOCUMENTS, steps=2)
    slots = first = second = path = both = right = tokens = 0
    for document in DOCUMENTS:
        ids = ids_of(document, task_tokenizer)
        right += sum((a + 1) % size == b for a, b in itertools.pairwise(ids))
        tokens += len(ids) - 1
        for i in range(len(ids) - 2):
            one = (0 if ids[i + 1] in blind else ids[i + 1] + 1) % size == (ids[i + 1] + 1) % size
            two = (0 if ids[i + 2] in blind else ids[i + 2] + 1) % size == (ids[i + 2] + 1) % size
            slots, first, second = slots + 1, first + one, second + two
            if ids[i + 2] == (ids[i + 1] + 1) % size:
                path, both = path + 1, both + (one and two)
    assert [figure.value for figure in report.agreement] == pytest.approx([first / slots, second / slots])
    assert report.trunk_right.value == pytest.approx(right / tokens)
    assert report.accepted[0] == report.agreement[0]
    accepted = report.accepted[1]
    assert (accepted is None) == (path == 0)
    assert accepted is None or accepted.value == pytest.approx(both / path)


def test_accepted_follows_the_trunk() -> None:
    """A text in which every token is the trunk's own: a step is accepted unless it or one before it saw a blind id."""
    ids = torch.arange(300, 380)
    trunk = ids + 1
    blind = torch.isin(ids, torch.tensor([310, 340]))
    drafts = torch.stack([torch.where(blind.roll(-step), 0, trunk.roll(-step)) for step in (1, 2)])
    slots, agree, path, accepted = _agreement(trunk, drafts, ids).tolist()
    assert slots == path == [78, 78]
    assert agree == [76, 76] and accepted == [76, 74]
    ids[20] = 7  # no longer the trunk's: the slot that reads it as its second token leaves the path
    assert _agreement(trunk, drafts, ids).tolist()[2:] == [[78, 77], [76, 73]]


def test_tokens_are_spread_over_the_files(task_tokenizer: Tokenizer) -> None:
    model = Successor(task_tokenizer)
    report = evaluate_draft(model, task_tokenizer, DOCUMENTS, length=20, max_tokens=60)
    assert report.files == 3 and report.tokens == 60 and report.max_tokens == 20
    assert report.agreement[0].interval is not None
    assert evaluate_draft(model, task_tokenizer, DOCUMENTS[:1], length=20).agreement[0].interval is None


def test_a_real_draft_layer_runs(task_tokenizer: Tokenizer) -> None:
    config = preset("tiny").replace(vocab_size=task_tokenizer.vocab_size)
    report = evaluate_draft(GlmMoeDsa(config).initialise(0).eval(), task_tokenizer, DOCUMENTS)
    assert len(report.agreement) == 2 and all(0 <= figure.value < 0.5 for figure in report.agreement)


def test_refusals(task_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="leave out the suite"):
        evaluate_draft(FakeModel(task_tokenizer), task_tokenizer, DOCUMENTS)
    model = Successor(task_tokenizer)
    with pytest.raises(ValueError, match="nothing to draft on"):
        evaluate_draft(model, task_tokenizer, [Document(name="a", text="x")], steps=9)
    for bad in ({"steps": 0}, {"steps": 2, "max_tokens": 3}, {"steps": 9, "length": 10}):
        with pytest.raises(ValueError, match="expected 1 step or more"):
            evaluate_draft(model, task_tokenizer, DOCUMENTS, **bad)
    with pytest.raises(ValueError, match="reads 2 to 4096"):
        evaluate_draft(model, task_tokenizer, DOCUMENTS, length=5000)
