"""`indexshare eval` with its suites: what is printed, what is JSON, and what is refused before any work."""

import json
from pathlib import Path

import pytest

from indexshare.checkpoint.load import save_model
from indexshare.cli import main
from indexshare.cli.evaluate import parse_lengths
from indexshare.config import preset
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


def test_all_suites_as_json(model: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", model, "--suite", "all", "--text", text, "--json", *SMALL]) == 0
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
        "prices", "held-out", "needle", "recall", "repository", "draft",
    ]  # fmt: skip


def test_tables_and_a_picture(model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "picture.png"
    arguments = ["--ancestor", model, "--plot", str(picture), "--attention", "selection,recent", *SMALL]
    assert main(["eval", model, "--suite", "all", "--text", text, *arguments]) == 2, "the tiny model shares"
    assert "whose layers are all Full" in capsys.readouterr().err
    assert main(["eval", model, "--suite", "all", "--text", text, *arguments[2:]]) == 0
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
    ],
)
def test_refusals(
    arguments: list[str], message: str, model: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", model, "--text", text, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
