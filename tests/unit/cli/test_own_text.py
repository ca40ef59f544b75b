"""`indexshare train --text`: plan, training, comparison, and a result that every other verb takes."""

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indexshare.config.shipped import shipped_models
from indexshare.train import own_text
from indexshare.train.progress import Reporter

Run = Callable[..., Any]
WORDS = "der Vogel singt im Garten und die Katze schläft auf warmem Stein am Brunnen".split()  # noqa: SIM905


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A dozen small files of German, one that is no text, one that is hidden, one of another kind."""
    folder = tmp_path / "garten"
    (folder / ".git").mkdir(parents=True)
    rng = random.Random(0)
    for number in range(12):
        lines = [" ".join(rng.choices(WORDS, k=9)) for _ in range(40)]
        (folder / f"seite{number}.md").write_text("\n".join(lines) + "\n")
    (folder / "latin.md").write_bytes("für".encode("latin-1"))
    (folder / ".git" / "x.md").write_text("hidden\n")
    (folder / "other.txt").write_text("another kind of file\n" * 50)
    return folder


def small(text: Path, model_dir: Path | str, *more: object) -> tuple[object, ...]:
    return ("train", "--text", text, "--pattern", "*.md", "--start", model_dir, "--length", 32, *more)


def test_a_dry_run_says_everything_and_leaves_nothing(run: Run, text: Path, model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run(*small(text, model_dir, "--steps", 6, "--out", out, "--dry-run"))
    assert result.code == 0, result.err
    facts = dict(line.split("  ", 1) for line in result.out.splitlines()[1:])
    assert facts["text"].strip() == f"{text}, **/*.md"
    assert "11 files" in facts["to train on"] and "bytes" in facts["to train on"] and "tokens" in facts["to train on"]
    assert "1 file" in facts["held out"]
    assert "1 file left out: 1 not UTF-8 (latin.md)" in result.out
    assert facts["updates"].split()[0] == "6," and "4 rows of 32 tokens" in facts["updates"]
    assert "as measured by one update" in facts["time"] and "iB" in facts["memory"]
    assert not out.exists()
    plan = json.loads(run(*small(text, model_dir, "--steps", 6, "--out", out, "--dry-run", "--json")).out)
    assert (plan["updates"], plan["update_tokens"], plan["row_tokens"]) == (6, 128, 32)
    assert plan["left_out"] == [
        {"name": "latin.md", "reason": "not UTF-8 (byte 1)", "kind": "not UTF-8", "routine": False}
    ]
    assert plan["measured"]["update_s"] > 0 and plan["seconds"] > 0 and plan["passes"] > 0
    assert not out.exists()


def test_the_result_is_better_and_works_everywhere(run: Run, text: Path, model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = small(text, model_dir, "--steps", 20, "--rate", 5, "--out", out, "--json")
    result = run(*options)
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert facts["held_out"]["tuned"]["value"] < 0.9 * facts["held_out"]["base"]["value"]
    assert facts["held_out"]["change"]["value"] == pytest.approx(
        facts["held_out"]["tuned"]["value"] / facts["held_out"]["base"]["value"] - 1
    )
    assert [row["step"] for row in facts["curve"]] == [0, 4, 8, 12, 16, 20]
    assert facts["curve"][0]["held_out_bits_per_byte"] > facts["curve"][-1]["held_out_bits_per_byte"]
    record = json.loads((out / "model" / "training.json").read_text())
    assert record["text"]["path"] == str(text) and record["start"] == str(model_dir)
    for model in (out, out / "model"):
        assert run("generate", "der Vogel", "--model", model, "--max-tokens", 4).code == 0
        assert (
            run("complete", text / "seite1.md", "--model", model, "--max-tokens", 4, "--max-context-tokens", 256).code
            == 0
        )
    scored = json.loads(run("eval", out, "--max-tokens", 256, "--json").out)
    assert scored["files"] == facts["held_out"]["files"]
    assert (out / "model" / "generation_config.json").read_bytes() == (
        model_dir / "generation_config.json"
    ).read_bytes()
    other = run(*small(text, "pico", "--steps", 1, "--out", out))
    assert other.code == 2 and "was begun otherwise: start was" in other.err
    again = run(*options)
    assert json.loads(again.out) == facts and "finished before" in again.err
    assert run("curve", out, "--json").code == 0


@pytest.mark.slow
def test_a_stopped_run_goes_on_by_the_same_command(
    run: Run, text: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, record = tmp_path / "run", Reporter.record
    options = small(text, model_dir, "--minutes", 0.05, "--out", out)

    def stop_at_two(self: Reporter, values: dict[str, Any]) -> None:
        record(self, values)
        if values["step"] == 2 and "loss" in values:
            os.kill(os.getpid(), signal.SIGINT)

    slow = own_text.Measured(update_s=0.4, evaluation_s=0.1, peak_bytes=1)
    monkeypatch.setattr(own_text, "_measure", lambda *_: slow)
    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "record", stop_at_two)
        result = run(*options)
    assert (result.code, result.out) == (130, "")
    assert (
        f"resume with indexshare train --text {text} --pattern '*.md' --start {model_dir} --minutes 0.05" in result.err
    )
    planned = json.loads((out / "own_text.json").read_text())["updates"]
    assert planned == int((60 * 0.05 - 6 * 0.1) / 0.4)
    other = run(*small(text, model_dir, "--minutes", 0.1, "--out", out))
    assert other.code == 2
    assert "was begun otherwise: minutes was 0.05, is now 0.1; use another folder with --out" in other.err
    result = run(*options)
    assert result.code == 0, result.err
    assert "resumed at step 2" in result.err and result.out.strip() == str(out / "model")
    assert "held-out text, bits per byte" in result.err and "tuned" in result.err
    assert json.loads((out / "model" / "training.json").read_text())["steps"] == planned


@pytest.mark.slow
def test_one_file_and_the_default_folder(
    run: Run, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("buch.txt").write_text("".join(f"{WORDS[n % 14]} {WORDS[n * n % 14]}.\n\n" for n in range(900)))
    result = run("train", "--text", "buch.txt", "--start", model_dir, "--steps", 2, "--quiet")
    assert result.code == 0, result.err
    assert result.out.strip() == str(Path("runs/tiny-buch/model"))
    for out in ((), ("--out", "mine")):  # in the folder that one stands in: what is written there is no text
        for _ in range(2):
            result = run("train", "--text", ".", "--start", model_dir, "--steps", 2, "--json", "--quiet", *out)
            assert result.code == 0, result.err
            facts = json.loads(result.out)
            assert (facts["text"]["train_files"], facts["text"]["held_out_files"]) == (1, 1)
    assert facts["run"] == "mine" and Path("runs/tiny-here/model").is_dir()
    monkeypatch.chdir("/")
    assert run("eval", tmp_path / "here/runs/tiny-buch", "--max-tokens", 128, "--json").code == 0, "by its full path"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to train on; give a recipe, such as recipes/nano.py, or your own text with --text"),
        (("--steps", 3), "--steps goes with --text; a recipe says such things itself"),
        (("recipes/tiny.py", "--held-out", 0.2), "--held-out goes with --text"),
        (("recipes/tiny.py", "--text", "TEXT"), "--text does not go with the recipe recipes/tiny.py"),
        (("--text", "TEXT", "--part", 0.5), "--text does not go with --part 0.5"),
        (("--text", "TEXT", "--steps", 3, "--minutes", 1), "both say how long; give one of them"),
        (("--text", "TEXT", "--steps", 0), "--steps is 0; expected at least 1"),
        (("--text", "TEXT", "--steps", 10**12), "--steps is 1000000000000; expected at least 1, at most"),
        (("--text", "TEXT", "--minutes", 0), "--minutes is 0.0; expected a number above 0"),
        (("--text", "TEXT", "--minutes", 1e9), "--minutes is 1e+09; expected at most"),
        (("--text", "TEXT", "--rate", -1), "--rate is -1.0; expected a number above 0"),
        (("--text", "TEXT", "--length", 8), "--length is 8; expected at least 16"),
        (("--text", "TEXT", "--held-out", 0), "--held-out is 0.0; expected a part of the text"),
        (("--text", "TEXT", "--start", "nana"), "did you mean 'nano'?"),
        (("--text", "TEXT", "--start", "MODEL", "--pattern", "*.rst"), "no text file under"),
        (("--text", "TEXT", "--start", "MODEL", "--pattern", "../*"), "expected a glob below the folder"),
        (("--text", "TEXT/none", "--start", "MODEL"), "does not exist; give an existing folder, a text file"),
        (("--text", "TEXT", "--start", "MODEL", "--length", 8192), "has rows over 8192 positions"),
    ],
)
def test_mistakes(
    run: Run, text: Path, model_dir: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    filled = [str(a).replace("TEXT", str(text)).replace("MODEL", str(model_dir)) for a in arguments]
    result = run("train", *filled, "--out", tmp_path / "out")
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert not (tmp_path / "out").exists(), "refused before anything was written"


def test_what_an_earlier_start_left_is_not_taken_for_ones_own(
    run: Run, text: Path, model_dir: Path, tmp_path: Path
) -> None:
    """A run that was killed before its first checkpoint leaves its tokenizer behind."""
    data = tmp_path / "out" / "data"
    data.mkdir(parents=True)
    (data / "tokenizer.json").write_bytes((shipped_models()["pico"] / "tokenizer.json").read_bytes())
    result = run(*small(text, model_dir, "--steps", 1, "--out", tmp_path / "out"))
    assert result.code == 2 and f"the tokenizer in {data} is not that of {model_dir}" in result.err


def test_too_little_text_is_said(run: Run, model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("kurz\n")
    result = run("train", "--text", tmp_path / "a.txt", "--start", model_dir, "--steps", 1, "--out", tmp_path / "out")
    assert result.code == 2 and "too few for windows of 17" in result.err


def test_a_recipe_as_json(run: Run, text: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "toy.py"
    recipe.write_text(
        "from indexshare.config.presets import preset\n"
        "from indexshare.data.corpus import TextFolder\n"
        "from indexshare.train.recipe import Recipe\n"
        "from indexshare.train.stages import pretrain\n"
        "def recipe():\n"
        "    stage = pretrain(tokens=256, sequence_length=32, batch_tokens=128, mixture={'text': 1.0})\n"
        f"    text = TextFolder(path={str(text)!r}, pattern='*.md')\n"
        "    return Recipe(name='toy', model=preset('tiny').replace(vocab_size=320), text=text, stages=(stage,))\n"
    )
    facts = json.loads(run("train", recipe, "--out", tmp_path / "out", "--json", "--quiet").out)
    assert facts.pop("curve")[-1]["step"] == 2
    assert facts == {
        "recipe": "toy", "run": str(tmp_path / "out"), "finished": True, "model": str(tmp_path / "out" / "model"),
    }  # fmt: skip
