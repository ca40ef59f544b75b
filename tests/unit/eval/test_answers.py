"""Answers in a file: nothing is asked twice, nothing is taken for another's, and a kill loses what was being asked."""

import json
from pathlib import Path

import pytest

from indexshare.cli import main
from indexshare.eval.answers import describe_answers, open_answers, read_answers
from indexshare.eval.asking import ModelAsker, fingerprint
from indexshare.eval.remote import ServerAsker
from indexshare.text.tokenizer import Tokenizer
from tests.unit.eval.fakes import FakeModel
from tests.unit.eval.servers import Behaviour, serving


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def run(file: Path, behaviour: Behaviour, url: str, *more: str) -> tuple[int, int]:
    """Exit code, and the questions that the server was asked."""
    behaviour.requests.clear()
    code = main(["eval", "--url", url, "--suite", "qa", "--lengths", "600", "--answers", str(file), "--json", *more])
    return code, len([body for _, body, _ in behaviour.requests if body["max_tokens"] > 1])


def test_only_what_is_missing_is_asked(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    behaviour = Behaviour()
    with serving(behaviour) as url:
        assert run(file, behaviour, url, "--samples", "2") == (0, 2)
        assert run(file, behaviour, url, "--samples", "3") == (0, 1)
        capsys.readouterr()
        assert run(file, behaviour, url, "--samples", "3") == (0, 0)
        captured = capsys.readouterr()
        assert "holds 3 answers of these programs with seed 0, which are not asked again\n" in captured.err
        assert json.loads(captured.out)["qa"]["lengths"][0]["scores"] == [1.0] * 3
        assert run(file, behaviour, url, "--samples", "3", "--seed", "1") == (0, 3)
        assert "3 with seed 0, kept apart" in capsys.readouterr().err
        assert run(file, behaviour, url, "--samples", "1", "--form", "chat") == (0, 1)
        assert run(file, behaviour, url, "--samples", "1", "--answer-tokens", "9") == (0, 1)
        assert run(file, behaviour, url, "--samples", "1", "--model-name", "other") == (0, 1)
        assert run(file, behaviour, url, "--samples", "3") == (0, 0)
    entries, _ = read_answers(file)
    assert len(entries) == 9 and entries[0]["task"] == "qa" and entries[0]["program"] == f"reads at {url}"


def test_ctrl_c_leaves_a_file_that_goes_on(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour, left = Behaviour(), [2]

    def ask_until_interrupted(self: ServerAsker, *arguments: object) -> object:
        if arguments[0].max_tokens > 1:  # type: ignore[attr-defined]
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return one(self, *arguments)  # type: ignore[arg-type]

    one = ServerAsker._one
    with serving(behaviour) as url:
        with monkeypatch.context() as patch:
            patch.setattr(ServerAsker, "_one", ask_until_interrupted)
            assert run(file, behaviour, url, "--samples", "5") == (130, 2)
        with file.open("ab") as damaged:
            damaged.write(b'{"version": 1, "ta')  # a kill in the middle of a line
        assert run(file, behaviour, url, "--samples", "5") == (0, 3)
    assert len(read_answers(file)[0]) == 5


@pytest.mark.parametrize("content", ["hello\n", '{"answer": "x"}\n', "[]\n", "\xff\n", '{"a": 1}\n{"b'])
def test_a_file_of_something_else_is_left_alone(content: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(content, encoding="latin-1")
    with serving(Behaviour()) as url:
        assert main(["eval", "--url", url, "--suite", "qa", "--answers", str(file)]) == 2
    assert "answers.jsonl, line 1: not an answer to long questions; give another --answers" in capsys.readouterr().err
    assert file.read_text(encoding="latin-1") == content


def test_two_processes_do_not_write_one_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_answers(file), pytest.raises(ValueError, match="is being written by process"), open_answers(file):
        pass
    assert main(["eval", "pico", "--suite", "qa", "--answers", str(file.parent / "no" / "a")]) == 2
    assert "does not exist; create it first" in capsys.readouterr().err


def test_changed_weights_are_another_program(task_tokenizer: Tokenizer, file: Path) -> None:
    model = FakeModel(task_tokenizer)
    before = ModelAsker("fake", model, task_tokenizer)
    entry = dict.fromkeys(("task", "length", "index", "max_tokens", "prompt", "version"), 0)
    entry |= {"seed": 0, "form": "base", "program": "fake", "identity": before.identity}
    file.write_text(json.dumps(entry | {"answer": "a", "prompt_tokens": 1}) + "\n")
    assert "holds 1 answer of these programs" in describe_answers(file, [before], 0)
    assert fingerprint(model, task_tokenizer, "") == before.identity
    next(model.layers[0].parameters()).data += 1e-3
    after = ModelAsker("fake", model, task_tokenizer)
    assert after.identity != before.identity
    said = describe_answers(file, [after], 0)
    assert (
        "holds 0 answers of these programs" in said and "1 of fake with other weights or settings, kept apart" in said
    )
