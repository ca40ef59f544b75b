"""Gaps in held-out files: which files and gaps, exact matches on both sides, and bits of the middle."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import indexshare
from indexshare.data.splitting import Document
from indexshare.eval.fill import evaluate_fill, unseen_documents
from indexshare.eval.suites.fill import FillSuite
from indexshare.text.fill import fill_tokens
from indexshare.text.tokenizer import Tokenizer
from tests.unit.eval.fakes import SURE, FakeModel

DOCUMENTS = [
    Document(name=f"text/{p.name}", text=p.read_text(encoding="utf-8"))
    for p in sorted((Path(indexshare.__file__).parent / "text").glob("*.py"))
]


class Filler(FakeModel):
    """Knows what comes next behind the middle token, and that a middle ends; nothing elsewhere."""

    def follow(self, ids: list[int], sight: int) -> Tensor:
        logits = super().follow(ids, sight)
        tokens = fill_tokens(self.tokenizer)
        assert tokens is not None
        if tokens.middle in ids:
            for row in range(ids.index(tokens.middle), len(ids) - 1):
                logits[row, ids[row + 1]] = SURE
            logits[-1, self.tokenizer.end_id] = SURE
        return logits


def test_the_text_after_a_gap_is_used_where_it_was_learned(task_tokenizer: Tokenizer, tmp_path: Path) -> None:
    marked = task_tokenizer.with_setting("fill_in_the_middle", True)
    calls: list[tuple[int, int]] = []
    report = evaluate_fill(
        Filler(marked), marked, DOCUMENTS, context=600, files=3, progress=lambda *done: calls.append(done)
    )
    assert report.learned and report.unseen and len(report.cases) == 6 and calls[-1] == (6, 6)
    for kind in ("line", "lines"):
        exact, without, saved = report.exact(kind, suffix=True), report.exact(kind, suffix=False), report.saved(kind)
        assert exact is not None and without is not None and saved is not None
        assert (exact.value, without.value) == (1.0, 0.0) and saved.value > 0.9
        for case in report.of(kind):
            text = next(d.text for d in DOCUMENTS if d.name == case.file)
            line = text.split("\n")[case.line - 1]
            assert case.characters == len(line.lstrip()) if kind == "line" else case.characters > len(line.lstrip())
            assert case.bits_without > 4 * case.characters / 3, "a model that knows nothing pays for every token"
    suite = FillSuite()
    (table,) = suite.tables(report)
    assert table.rows[0][0] == "one line" and table.rows[0][1].startswith("100% (")  # type: ignore[union-attr]
    facts = json.loads(json.dumps(suite.facts(report)))["fill"]
    assert facts["figures"]["lines"]["exact"]["value"] == 1.0 and len(facts["cases"]) == 6
    pytest.importorskip("matplotlib")
    from indexshare.eval.plots import draw

    draw(suite.pictures(report), tmp_path / "p.png", "fill")


def test_a_model_that_only_goes_on_is_measured_so(task_tokenizer: Tokenizer) -> None:
    report = evaluate_fill(FakeModel(task_tokenizer), task_tokenizer, DOCUMENTS, context=500, files=2)
    assert not report.learned and report.exact("line", suffix=True) is None and report.saved("line") is None
    (table,) = FillSuite().tables(report)
    assert "has not learned" in table.title and table.rows[0][1] == "-"  # type: ignore[union-attr]
    again = evaluate_fill(FakeModel(task_tokenizer), task_tokenizer, DOCUMENTS, context=500, files=2)
    assert again == report
    other = evaluate_fill(FakeModel(task_tokenizer), task_tokenizer, DOCUMENTS, context=500, files=2, seed=1)
    assert [case.line for case in other.cases] != [case.line for case in report.cases]


def test_bits_are_those_of_the_middle(task_tokenizer: Tokenizer) -> None:
    """A model that finds every token equally likely pays the same for each."""
    report = evaluate_fill(FakeModel(task_tokenizer), task_tokenizer, DOCUMENTS[-1:], context=500, files=1)
    (case,) = report.of("line")
    middle = DOCUMENTS[-1].text.split("\n")[case.line - 1].lstrip()
    tokens = task_tokenizer.encode(middle, parse_special=False)
    each = torch.log2(torch.tensor(float(task_tokenizer.vocab_size)))
    assert case.bits_without == pytest.approx(len(tokens) * float(each), rel=1e-4)


def test_packages_never_seen_come_first() -> None:
    def documents(*names: str) -> list[Document]:
        return [Document(name=name, text=name) for name in names]

    held = documents("a/x.py", "b/x.py", "b/y.py", "top.py")
    assert unseen_documents(held, [*held, *documents("a/z.py")]) == (documents("b/x.py", "b/y.py"), True)
    assert unseen_documents(held[:1], [*held, *documents("a/z.py")]) == (held[:1], False)


def test_refusals(task_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="none of 1 files has a line and several lines"):
        evaluate_fill(FakeModel(task_tokenizer), task_tokenizer, [Document(name="a", text="x\n")])
