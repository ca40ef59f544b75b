"""Files with their package before them: what is in the context, what is not, and what it gains."""

import math

import pytest

from indexshare.data.splitting import Document
from indexshare.eval.package import OPENING_TOKENS, Target, choose_targets, package_context
from indexshare.eval.repository import evaluate_repository
from indexshare.text.tokenizer import END_OF_TEXT, Tokenizer, file_header
from tests.tolerance import TOL
from tests.unit.eval.fakes import Copier, FakeModel

BODY = "".join(f"def load_{i}(cache):\n    return cache.find_{i}(cache, {i})\n\n\n" for i in range(12))
MAIN = "from alpha import helper\n\nlimit = 3\n" + "".join(f"helper.store_{i}(value_{i}, {i * 7})\n" for i in range(20))
FILES = [
    Document(name="alpha/main.py", text=MAIN),
    Document(name="alpha/copy.py", text="# the same\n" + MAIN),
    Document(name="alpha/helper.py", text="".join(f"def store_{i}(value, n):\n    pass\n" for i in range(20))),
    Document(name="alpha/other.py", text=BODY),
    Document(name="beta/main.py", text=BODY + MAIN),
    Document(name="alone/one.py", text=BODY),
]
HELD_OUT = [FILES[0], FILES[5]]


def target(tokenizer: Tokenizer) -> Target:
    (found,) = choose_targets(tokenizer, HELD_OUT, FILES, count=5)
    return found


def test_targets_have_a_package_and_an_opening(task_tokenizer: Tokenizer) -> None:
    found = target(task_tokenizer)
    assert found.document.name == "alpha/main.py"
    assert {d.name for d in found.siblings} == {"alpha/copy.py", "alpha/helper.py", "alpha/other.py"}
    assert task_tokenizer.decode(found.header + found.body) == file_header("alpha/main.py") + MAIN
    assert found.opening == min(OPENING_TOKENS, len(found.body) // 4)


def test_the_context_is_the_package_without_copies(task_tokenizer: Tokenizer) -> None:
    found = target(task_tokenizer)
    ids, names = package_context(task_tokenizer, found, found.opening, 4000)
    assert names == ("alpha/other.py", "alpha/helper.py"), "the imported file is nearest, the copy of the target is out"
    end = task_tokenizer.id_of(END_OF_TEXT)
    expected = [task_tokenizer.encode(FILES[i].headed, parse_special=False) for i in (3, 2)]
    assert ids == [*expected[0], end, *expected[1], end]
    short, names = package_context(task_tokenizer, found, found.opening, 100)
    assert 0 < len(short) <= 100 and names == ("alpha/helper.py",)
    assert package_context(task_tokenizer, found, found.opening, 0) == ([], ())


def test_a_silent_model_gains_nothing(task_tokenizer: Tokenizer) -> None:
    report = evaluate_repository(FakeModel(task_tokenizer), task_tokenizer, HELD_OUT, FILES, context=4000)
    found = target(task_tokenizer)
    (row,) = report.by_file
    assert row.tokens == len(found.body) - found.opening == report.tokens
    assert row.num_bytes == len(task_tokenizer.decode_bytes(found.body[found.opening :]))
    expected = row.tokens * math.log2(task_tokenizer.vocab_size)
    assert row.alone == pytest.approx(expected, rel=TOL["held-out bits", "float32"].rtol)
    assert report.gain.value == pytest.approx(0, abs=TOL["held-out bits", "float32"].rtol)
    assert row.context_files == 2 and report.mean_context_tokens == row.context_tokens > 0


def test_a_model_that_copies_gains_from_the_package(task_tokenizer: Tokenizer) -> None:
    usage = "".join(f"{line}\n# read {n}\n" for n, line in enumerate(MAIN.splitlines()))  # the same lines, apart
    files = [*FILES, Document(name="alpha/usage.py", text=usage)]
    report = evaluate_repository(Copier(task_tokenizer), task_tokenizer, HELD_OUT, files, context=2400)
    assert report.gain.value > 0.1 and report.gain.interval is None
    assert report.with_package.value < report.alone.value


def test_refusals(task_tokenizer: Tokenizer) -> None:
    model = FakeModel(task_tokenizer)
    for arguments, message in (
        ({"context": 5000}, "reads 2 to 4096"),
        ({"context": 60}, "give a longer one"),
        ({"files": 0}, "expected at least 1"),
        ({"held_out": [FILES[5]]}, "score a folder with packages"),
    ):
        chosen = {"held_out": HELD_OUT, "everything": FILES, "context": 2000, **arguments}
        with pytest.raises(ValueError, match=message):
            evaluate_repository(model, task_tokenizer, **chosen)  # type: ignore[arg-type]
