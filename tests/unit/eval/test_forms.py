"""Forms in held-out files: both kinds in every text, intervals, families, what a model that knows or guesses gets."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import indexshare
from indexshare.data.forms import HELD_OUT, TRAINED
from indexshare.data.splitting import Document
from indexshare.eval.forms import SPLITS, FormsReport, evaluate_forms
from indexshare.eval.forward import ATTENTION, FULL, RECENT, SELECTION
from indexshare.eval.suites.forms import FormsSuite
from indexshare.text.tokenizer import Tokenizer
from tests.unit.eval.fakes import SURE, FakeModel

ROOT = Path(indexshare.__file__).parent
DOCUMENTS = [
    Document(name=f"text/{p.name}", text=p.read_text(encoding="utf-8")) for p in sorted((ROOT / "text").glob("*.py"))
]


class Knower(FakeModel):
    """Says the true next token where it sees more than the window of recent tokens."""

    def follow(self, ids: list[int], sight: int) -> Tensor:
        logits = super().follow(ids, sight)
        if sight >= len(ids):
            logits[torch.arange(len(ids) - 1), torch.tensor(ids[1:])] = SURE
        return logits


@pytest.fixture(scope="module")
def report(task_tokenizer: Tokenizer) -> FormsReport:
    return evaluate_forms(Knower(task_tokenizer), task_tokenizer, DOCUMENTS, lengths=[900, 1500], samples=3)


def test_trained_and_held_out_forms_are_told_apart(report: FormsReport) -> None:
    assert report.lengths == (900, 1500) and report.texts == 3
    assert report.asked == {"trained": (6, 6), "held-out": (6, 6)}
    assert report.right[SELECTION] == report.right[FULL] == report.asked
    assert report.right[RECENT] == {"trained": (0, 0), "held-out": (0, 0)}
    found = report.accuracy(SELECTION, "held-out", 900)
    assert found.value == 1.0 and found.interval is not None and 0.5 < found.interval[0] < 0.7
    trained = {f.name for f in report.families if f.split == "trained"}
    assert trained <= {form.statement.name for form in TRAINED} | {form.question.name for form in TRAINED}
    held = [f for f in report.families if f.split == "held-out"]
    assert held and all(
        any(f.name in (form.statement.name, form.question.name) for form in HELD_OUT) and f.asked == f.right[SELECTION]
        for f in held
    )
    assert sum(f.asked for f in report.families if f.side == "statement" and f.split == "trained") == 12


def test_seeds_make_the_texts_and_models_get_the_same(report: FormsReport, task_tokenizer: Tokenizer) -> None:
    def hashes(seed: int) -> tuple[str, ...]:
        model = FakeModel(task_tokenizer)
        found = evaluate_forms(
            model, task_tokenizer, DOCUMENTS, lengths=[900], samples=3, seed=seed, attention=[SELECTION]
        )
        assert found.right[SELECTION] == {"trained": (0,), "held-out": (0,)}, "a silent model answers nothing"
        return found.hashes

    assert hashes(0) == report.hashes[:1] != hashes(1)


def test_tables_facts_and_pictures(report: FormsReport, tmp_path: Path) -> None:
    suite = FormsSuite()
    trained, held, families = suite.tables(report)
    assert trained.title.startswith("forms, trained forms") and held.title.startswith("forms, held-out forms")
    assert "100% (" in trained.rows[0][1] and trained.columns == ("length", *ATTENTION)  # type: ignore[union-attr]
    assert len(families.rows) == len(report.families)  # type: ignore[union-attr]
    facts = json.loads(json.dumps(suite.facts(report)))["forms"]
    assert set(facts["accuracy"][SELECTION]) == set(SPLITS)
    assert (
        facts["accuracy"][RECENT]["held-out"][1]["value"] == 0.0 and facts["families"][0]["accuracy"][FULL]["interval"]
    )
    pytest.importorskip("matplotlib")
    from indexshare.eval.plots import draw

    draw(suite.pictures(report), tmp_path / "p.png", "forms")
    assert (tmp_path / "p.png").stat().st_size > 5000


def test_refusals(task_tokenizer: Tokenizer) -> None:
    model = FakeModel(task_tokenizer)
    for documents, changes, message in (
        ([], {}, "0 held-out files; expected at least 1 of each"),
        (DOCUMENTS, {"samples": 0}, "0 samples"),
        (DOCUMENTS, {"lengths": [9000]}, "reads 2 to 4096"),
        (DOCUMENTS, {"lengths": [60]}, "60 tokens are too few for a text with 4 questions"),
        (DOCUMENTS, {"attention": ["sparse"]}, "expected some of selection, full, recent"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_forms(model, task_tokenizer, documents, **changes)  # type: ignore[arg-type]
