"""`indexshare eval` with its suites: what is printed, what is JSON, and what is refused before any work."""

import json
import shutil
from pathlib import Path

import pytest

from indexshare.checkpoint.load import save_model
from indexshare.cli import main
from indexshare.cli.suite_options import parse_lengths
from indexshare.config import preset
from indexshare.eval import plots
from indexshare.eval.suites.draft import DraftSuite
from indexshare.eval.suites.registry import choose_suites, suite_names
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import Tokenizer

KEYS_OF_THE_FIRST_VERSION = {
    "model", "files", "num_bytes", "max_tokens", "sparse", "full", "xz", "position_edges", "position_bits", "windows",
    "below_xz", "price_of_sparsity",
}  # fmt: skip
SMALL = [
    "--lengths",
    "400",
    "--samples",
    "1",
    "--tokens",
    "500",
    "--context",
    "900",
    "--files",
    "2",
    "--max-tokens",
    "300",
]


@pytest.fixture(scope="module")
def model(task_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    config = preset("tiny").replace(vocab_size=task_tokenizer.vocab_size, dtype="float32")
    save_model(GlmMoeDsa(config).initialise(0), folder)
    task_tokenizer.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("text")
    (root / "pkg").mkdir()
    for name, word in (("a", "cache"), ("b", "token"), ("c", "reader")):
        lines = (f"def find_{word}_{i}(queue):\n    return queue.{word}({i * 37})\n" for i in range(30))
        (root / "pkg" / f"{name}.py").write_text("".join(lines))
    return str(root)


OLDER = "held-out,needle,recall,repository,draft"  # the long questions do not fit 400 tokens


def test_suites_as_json(model: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", model, "--suite", OLDER, "--text", text, "--json", *SMALL]) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert set(facts) >= KEYS_OF_THE_FIRST_VERSION | {"prices", "needle", "recall", "repository", "draft"}
    assert facts["files"] == facts["repository"]["files"] == 2, "--files 2 of the three"
    assert facts["prices"]["rows"][0]["price_of_sharing"] is None
    for task in ("needle", "recall"):
        (row,) = facts[task]["accuracy"]["recent"]
        assert row["length"] == 400 and 0 <= row["worst_depth"] <= row["value"] <= 1
    assert len(facts["repository"]["by_file"]) == 2 and len(facts["draft"]["agreement"]) == 2
    assert [line.split(":")[0] for line in captured.err.splitlines()] == [
        "prices", "held-out", "needle", "recall", "repository", "draft", "rounds of drafts",
    ]  # fmt: skip


def test_tables_and_a_picture(model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "picture.png"
    arguments = ["--ancestor", model, "--plot", str(picture), "--attention", "selection,recent", *SMALL]
    assert main(["eval", model, "--suite", OLDER, "--text", text, *arguments]) == 2, "the tiny model shares"
    assert "whose layers are all Full" in capsys.readouterr().err
    assert main(["eval", model, "--suite", OLDER, "--text", text, *arguments[2:]]) == 0
    out = capsys.readouterr().out
    for words in (
        "price of sparsity",
        "needle: exact answers by length",
        "recall, selection",
        "saved",
        "accepted up to",
    ):
        assert words in out
    assert picture.stat().st_size > 10_000


def test_generated_tasks_need_no_text(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", model, "--suite", "needle", "--lengths", "300", "--samples", "1", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"model", "needle"}
    assert main(["eval", model, "--suite", "draft"]) == 2
    assert "give a folder with --text" in capsys.readouterr().err


def test_a_cache_in_few_bits_costs_something(model: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for kept in ([], ["--cache-dtype", "fp8"], ["--index-cache-dtype", "fp8"]):
        assert main(["eval", model, "--text", text, "--max-tokens", "300", "--json", *kept]) == 0
        found.append(json.loads(capsys.readouterr().out)["sparse"])
    assert len(set(found)) == 3 and max(found) < 1.1 * min(found)
    assert main(["eval", model, "--text", text, "--index-cache-dtype", "fp9"]) == 2
    assert "--index-cache-dtype is 'fp9'; did you mean 'fp8'?" in capsys.readouterr().err


def test_the_first_version_stays_the_default(model: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", model, "--text", text, "--max-tokens", "300", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    intervals = {"sparse_interval", "full_interval", "below_xz_interval", "price_interval"}
    assert set(facts) == KEYS_OF_THE_FIRST_VERSION | intervals
    assert facts["sparse_interval"][0] <= facts["sparse"] <= facts["sparse_interval"][1]


def test_lists_are_parsed() -> None:
    def names(text: str) -> tuple[str, ...]:
        return tuple(suite.name for suite in choose_suites(text))

    assert names("recall, held-out") == ("held-out", "recall") and names("all") == suite_names()
    assert parse_lengths("2K,300") == (2048, 300) and parse_lengths(None) is None


def test_suites_that_come_late_are_checked_first(
    text: str, task_tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = preset("tiny").replace(vocab_size=task_tokenizer.vocab_size, num_nextn_predict_layers=0)
    save_model(GlmMoeDsa(config).initialise(0), tmp_path)
    task_tokenizer.save(tmp_path)
    assert main(["eval", str(tmp_path), "--text", text, "--suite", "all"]) == 2
    error = capsys.readouterr().err
    assert "no draft layer" in error and "held-out:" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "haystack"], "expected some of held-out, needle"),
        (["--lengths", "2M"], "2048,8192 or 2K,8K"),
        (["--lengths", ""], "numbers of tokens"),
        (["--plot", "a.txt"], "ends in one of"),
        (["--suite", "needle", "--attention", "dense"], "expected some of selection"),
        (["--suite", "all", "--lengths", "8K"], "reads 2 to 4096"),
        (["--suite", "all", "--lengths", "8"], "nothing is left out"),
        (["--lengths", "4K"], "give more text"),
        (["--suite", "all", "--samples", "0"], "--samples is 0; expected at least 1"),
        (["--suite", "all", "--context", "8192"], "reads 2 to 4096"),
        (["--suite", "all", "--tokens", "0"], "--tokens is 0"),
        (["--max-tokens", "3"], "alone takes"),
    ],
)
def test_refusals(
    arguments: list[str], message: str, model: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", model, "--text", text, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_text_is_read_as_the_model_was_trained_on_it(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "notes"
    (notes / "deep").mkdir(parents=True)
    for name in ("a.md", "deep/b.md", "c.py"):
        (notes / name).write_text(f"The text of {name}, some words long.\n")
    (notes / "latin.md").write_bytes(b"caf\xe9")
    trained = tmp_path / "model"
    shutil.copytree(model, trained)
    (trained / "training.json").write_text(json.dumps({"text": {"path": "elsewhere", "pattern": "**/*.md"}}))

    def files(*arguments: str) -> tuple[int, str]:
        assert main(["eval", *arguments, "--text", str(notes), "--max-tokens", "100", "--json"]) == 0
        captured = capsys.readouterr()
        return json.loads(captured.out)["files"], captured.err

    assert files(model)[0] == 1, "nothing is known of its text: *.py"
    number, said = files(str(trained))
    assert number == 2 and "1 file left out: 1 not UTF-8 (latin.md)" in said
    assert files(str(trained), "--pattern", "*.py", "--pattern", "deep/*")[0] == 2
    assert main(["eval", model, "--pattern", "*.md"]) == 2
    assert "--pattern goes with --text" in capsys.readouterr().err


def test_a_short_context_shortens_the_defaults_and_says_so(
    text: str, task_tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = preset("tiny").replace(vocab_size=task_tokenizer.vocab_size, max_position_embeddings=600)
    save_model(GlmMoeDsa(config).initialise(0), tmp_path)
    task_tokenizer.save(tmp_path)
    arguments = ["--suite", "held-out,needle", "--samples", "1", "--files", "1", "--json"]
    assert main(["eval", str(tmp_path), "--text", text, *arguments]) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert facts["max_tokens"] == 600 and facts["needle"]["lengths"] == [600]
    assert "held-out: files are scored in stretches of 600 tokens, which is the model's context" in captured.err
    assert "needle: texts of 600 tokens alone" in captured.err
    assert main(["eval", str(tmp_path), "--text", text, "--max-tokens", "601", *arguments]) == 2
    captured = capsys.readouterr()
    assert "max_tokens is 601; the model's context is 600" in captured.err and captured.out == ""


def test_what_was_measured_is_not_lost(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later suite fails, a picture cannot be written in the end, Ctrl+C: the tables before it are there."""
    held_out = ["eval", model, "--text", text, "--max-tokens", "300", "--files", "1"]

    def fails(*arguments: object) -> None:
        raise ValueError("too late")

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    for broken, code in ((fails, 2), (interrupted, 130)):
        with monkeypatch.context() as patch:
            patch.setattr(DraftSuite, "run", broken)
            assert main([*held_out, "--suite", "held-out,draft"]) == code
            assert "bits per byte" in capsys.readouterr().out
            assert main([*held_out, "--suite", "held-out,draft", "--json"]) == code
            assert json.loads(capsys.readouterr().out)["files"] == 1
    pytest.importorskip("matplotlib")
    with monkeypatch.context() as patch:
        patch.setattr(plots, "check_can_write", lambda file, **kinds: None)
        assert main([*held_out, "--plot", str(tmp_path / "no" / "a.png")]) == 2
        assert "bits per byte" in capsys.readouterr().out
    assert main([*held_out, "--plot", str(tmp_path / "no" / "a.png")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "does not exist; create it first" in captured.err
