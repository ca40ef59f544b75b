"""`generate` and `complete` on a tiny random model: the same text in every form, every mistake refused."""

import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from indexshare.cli import measuring
from indexshare.cli.complete import Gap, encode_context
from indexshare.cli.streaming import ReadingBar
from indexshare.repository.context import PackedContext, PackedFile
from indexshare.text.fill import fill_tokens
from indexshare.text.tokenizer import END_OF_TEXT, Tokenizer, file_header

Run = Callable[..., Any]


def test_streamed_text_equals_the_json_text(run: Run, model_dir: Path) -> None:
    options = ("--model", model_dir, "--max-tokens", 24)
    streamed = run("generate", "def f(x):", *options)
    whole = json.loads(run("generate", "def f(x):", *options, "--json").out)
    (completion,) = whole["completions"]
    assert streamed.code == 0
    assert streamed.out.rstrip("\n") == completion["text"].rstrip("\n")
    assert completion["stats"]["prompt_tokens"] == len(Tokenizer.load(model_dir).encode("def f(x):"))
    assert completion["stats"]["completion_tokens"] == len(completion["token_ids"])
    assert "tokens/s" in streamed.err
    assert "peak memory" in streamed.err
    assert "tokens/s" not in streamed.out


def test_a_single_token_has_no_rate(run: Run, model_dir: Path) -> None:
    cost = run("generate", "def f(x):", "--model", model_dir, "--max-tokens", 1).err
    assert "1 token written\n" in cost


def test_the_reading_bar_shows_no_count_before_it_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=80)
    monkeypatch.setattr(measuring, "console", lambda *, stderr: terminal)
    with ReadingBar() as bar:
        before = shown.getvalue()
        bar(2048, 7939)
    assert "of 1" not in before
    assert "2,048 of 7,939 tokens" in shown.getvalue()


def test_several_prompts_give_what_each_gives_alone(run: Run, model_dir: Path, tmp_path: Path) -> None:
    options = ("--model", model_dir, "--max-tokens", 8, "--json")
    (tmp_path / "p.txt").write_text("return x")
    both = json.loads(run("generate", "def f", "--file", tmp_path / "p.txt", *options).out)["completions"]
    alone = [json.loads(run("generate", p, *options).out)["completions"][0] for p in ("def f", "return x")]
    assert [c["prompt"] for c in both] == ["def f", "return x"]
    assert [c["token_ids"] for c in both] == [c["token_ids"] for c in alone]
    text = run("generate", "def f", "return x", "--model", model_dir, "--max-tokens", 8).out
    assert all(c["text"].strip() in text for c in both)


def test_a_prompt_from_standard_input(run: Run, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Input:
        buffer = io.BytesIO(b"def f")

    monkeypatch.setattr(sys, "stdin", Input())
    result = run("generate", "--file", "-", "--model", model_dir, "--max-tokens", 2, "--json")
    assert json.loads(result.out)["completions"][0]["prompt"] == "def f"


def test_sampling_options_reach_the_sampler(run: Run, model_dir: Path) -> None:
    options = ("generate", "def", "--model", model_dir, "--max-tokens", 12, "--json", "--temperature", 1.5)
    seeds = [json.loads(run(*options, "--seed", s).out)["completions"][0]["token_ids"] for s in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]
    greedy = json.loads(run(*options[:-2]).out)["completions"][0]["token_ids"]
    for narrow in (("--top-k", 1), ("--top-p", 1e-6), ("--min-p", 1.0)):
        assert json.loads(run(*options, *narrow).out)["completions"][0]["token_ids"] == greedy
    text = json.loads(run(*options, "--seed", 1).out)["completions"][0]["text"]
    middle = text[len(text) // 2 :][:2]
    stopped = run(*options, "--seed", 1, "--stop", "never seen", "--stop", middle)
    completion = json.loads(stopped.out)["completions"][0]
    assert completion["finish_reason"] == "stop"
    assert completion["text"] == text[: text.index(middle)]


def test_several_samples_count_their_seeds_on(run: Run, model_dir: Path, source_dir: Path) -> None:
    options = ("--model", model_dir, "--max-tokens", 8, "--temperature", 1.2, "--json")
    three = json.loads(run("generate", "def", "x", "-n", 3, "--seed", 7, *options).out)["completions"]
    assert [(c["prompt"], c["sample"]) for c in three] == [(p, n) for p in ("def", "x") for n in range(3)]
    for n, found in enumerate(three[:3]):
        (alone,) = json.loads(run("generate", "def", "--seed", 7 + n, *options).out)["completions"]
        assert found["token_ids"] == alone["token_ids"]
    assert len({tuple(c["token_ids"]) for c in three[:3]}) == 3
    place = ("complete", source_dir / "main.py", "--context", source_dir, *options)
    texts = json.loads(run(*place, "-n", 2, "--seed", 1).out)["completions"]
    assert [t["token_ids"] for t in texts] == [json.loads(run(*place, "--seed", n).out)["token_ids"] for n in (1, 2)]
    shown = run("generate", "def", "-n", 2, "--seed", 7, *options[:-1])
    assert all(c["text"].strip() in shown.out for c in three[:2]) and "[2 of 2]" in shown.err


def test_logprobs_are_shown(run: Run, model_dir: Path) -> None:
    options = ("generate", "def", "--model", model_dir, "--max-tokens", 4, "--logprobs", 3)
    (completion,) = json.loads(run(*options, "--json").out)["completions"]
    assert [entry["id"] for entry in completion["logprobs"]] == completion["token_ids"]
    assert "".join(entry["token"] for entry in completion["logprobs"]) == completion["text"]
    for entry in completion["logprobs"]:
        assert entry["top"][0] == {key: entry[key] for key in ("token", "id", "logprob")}, "greedy takes the first"
        assert len(entry["top"]) == 3 and entry["top"][0]["logprob"] >= entry["top"][1]["logprob"]
    shown = run(*options)
    assert shown.out.strip() == completion["text"].strip()
    assert "most likely" in shown.err and f"{completion['logprobs'][0]['logprob']:.4f}" in shown.err


def test_penalties_and_end_of_text(run: Run, tmp_path: Path, model_dir: Path) -> None:
    def ids(*more: object, model: Path = model_dir) -> list[int]:
        command = ("generate", "def def def", "--model", model, "--max-tokens", 24, "--json")
        return json.loads(run(*command, *more).out)["completions"][0]["token_ids"]

    plain = ids()
    for option in ("--repetition-penalty", "--presence-penalty", "--frequency-penalty"):
        assert ids(option, 1.9) != plain
    ending = tmp_path / "ending"
    shutil.copytree(model_dir, ending)
    (ending / "generation_config.json").write_text(json.dumps({"eos_token_id": plain[3]}))
    first = plain.index(plain[3]) + 1
    assert ids(model=ending) == plain[:first]
    assert ids("--ignore-eos", model=ending) == plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", "--samples", 0), "--samples (-n) is 0"),
        (("x", "-n", 4000), "set --temperature above 0 (--max-tokens limits the length)"),
        (("x", "--logprobs", -1), "logprobs is -1"),
        (("x", "--logprobs", 321), "the vocabulary has only 320 tokens"),
        (("x", "--repetition-penalty", 0), "repetition_penalty is 0"),
        (("x", "--cache-tokens", 0), "cache_tokens is 0"),
        ((), "no prompt"),
        (("x", "--temperature", -1), "temperature is -1"),
        (("x", "--max-tokens", 0), "max_tokens is 0"),
        (("x", "--max-tokens", 5000), "context"),
        (("x", "--model", "nanoo"), "no model 'nanoo'"),
        (("x", "--dtype", "float7"), "float7"),
        (("x", "--device", "tpu"), "--device is 'tpu'"),
        (("x", "--device", "cuda:77"), "CUDA devices"),
        (("x", "--full-attention-below", -1), "full_attention_below is -1"),
        (("x", "--threads", 0), "threads is 0"),
        (("",), "empty"),
        (("--file", "nothing.txt"), "nothing.txt: No such file"),
        (("x", "--nonsense"), "nonsense"),
        (("x", "--top-k", "many"), "many"),
    ],
)
def test_mistakes_are_one_line_and_code_2(
    run: Run, model_dir: Path, arguments: tuple[object, ...], message: str
) -> None:
    model = () if "--model" in arguments else ("--model", model_dir)
    result = run("generate", *arguments, *model)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert message in result.err
    assert result.err.count("\n") == 1


def test_complete_puts_the_tree_into_the_context(run: Run, model_dir: Path, source_dir: Path) -> None:
    options = ("--context", source_dir, "--model", model_dir, "--max-tokens", 8)
    place = f"{source_dir / 'main.py'}:4"
    facts = json.loads(run("complete", place, *options, "--json").out)
    assert [f["name"] for f in facts["files"]] == ["lib/other.py", "lib/helper.py", "main.py"]
    reason = "binary (holds a zero byte)"
    assert facts["skipped"] == [{"name": "logo.png", "reason": reason, "kind": "binary", "routine": False}]
    assert (facts["line"], facts["column"]) == (4, len("def four():") + 1)
    tokenizer = Tokenizer.load(model_dir)
    names = [f["name"] for f in facts["files"]]
    texts = [(source_dir / name).read_text() for name in names[:2]]
    texts.append("from lib.helper import double\n\n\ndef four():")
    prompt = [file_header(name) + text for name, text in zip(names, texts, strict=True)]
    expected = sum(len(tokenizer.encode(piece)) for piece in prompt) + 2
    assert facts["stats"]["prompt_tokens"] == expected == sum(f["tokens"] for f in facts["files"]) + 2
    streamed = run("complete", place, *options)
    assert streamed.out.rstrip("\n") == facts["text"].rstrip("\n")
    assert "skipped logo.png: binary" in streamed.err
    assert f"{expected:,} tokens of context from 3 files" in streamed.err


def test_complete_a_file_that_stands_alone(run: Run, model_dir: Path, tmp_path: Path) -> None:
    """A new, empty file is completed from its name; a file of the same name elsewhere stays in the context."""
    new, other = tmp_path / "alone" / "new.py", tmp_path / "tree" / "new.py"
    for path, text in ((new, ""), (other, "x = 1\n")):
        path.parent.mkdir()
        path.write_text(text)
    options = ("--model", model_dir, "--max-tokens", 2, "--json")
    facts = json.loads(run("complete", new, *options).out)
    assert [f["name"] for f in facts["files"]] == ["new.py"]
    facts = json.loads(run("complete", new, *options, "--context", other.parent).out)
    assert [f["name"] for f in facts["files"]] == ["new.py", new.resolve().as_posix()]


def test_complete_holds_its_budget(run: Run, model_dir: Path, source_dir: Path) -> None:
    options = ("--context", source_dir, "--model", model_dir, "--max-tokens", 4, "--json", "--max-context-tokens")
    for budget in (200, 400, 4092):
        facts = json.loads(run("complete", source_dir / "main.py", *options, budget).out)
        assert facts["stats"]["prompt_tokens"] <= budget
        assert facts["files"][-1]["name"] == "main.py"
    assert facts["left_out"] == []


@pytest.mark.parametrize(
    ("place", "extra", "message"),
    [
        ("missing.py", (), "does not exist"),
        ("main.py:99", (), "line 99 is outside"),
        ("main.py:1:99", (), "column 99 is outside"),
        ("logo.png", (), "cannot be completed: binary"),
        ("main.py", ("--context", "nowhere"), "nowhere does not exist"),
        ("main.py", ("--context", "main.py"), "is a file"),
        ("main.py", ("--context", "empty"), "holds no text files"),
        ("main.py", ("--max-context-tokens", 5000), "leaves 1 to 4088"),
        ("main.py", ("--max-context-tokens", 0), "--max-context-tokens is 0"),
        ("main.py", ("--max-context-tokens", 3), "budget is 3 tokens"),
        ("main.py", ("--max-tokens", 4096), "--max-tokens is 4096"),
    ],
)
def test_complete_refuses(
    run: Run,
    model_dir: Path,
    source_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    extra: tuple[object, ...],
    message: str,
) -> None:
    (source_dir / "empty").mkdir()
    monkeypatch.chdir(source_dir)
    tokens = () if "--max-tokens" in extra else ("--max-tokens", 8)
    result = run("complete", place, "--model", model_dir, *tokens, *extra)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert result.err.count("\n") == 1


def test_names_of_special_tokens_in_files_stay_text(model_dir: Path) -> None:
    tokenizer = Tokenizer.load(model_dir)
    entry = PackedFile(name="a", tokens=0, lines=1, total_lines=1)
    packed = PackedContext(pieces=(f"a {END_OF_TEXT}\n", "b"), files=(entry, entry), left_out=(), skipped=(), tokens=0)
    ids = encode_context(packed, tokenizer)
    assert ids.count(tokenizer.id_of(END_OF_TEXT)) == 1
    assert tokenizer.decode(ids) == f"a {END_OF_TEXT}\n{END_OF_TEXT}b"


def test_text_after_the_cursor_is_for_models_that_learned_to_use_it(
    run: Callable[..., Any], model_dir: Path, source_dir: Path, tmp_path: Path
) -> None:
    """The prompt is the context, then the file around its gap; --no-suffix and other models go on as before."""
    filling = shutil.copytree(model_dir, tmp_path / "filling")
    tokenizer = Tokenizer.load(model_dir).with_setting("fill_in_the_middle", True)
    tokenizer.save(filling)
    place, counts = f"{source_dir / 'main.py'}:4:5", {}
    options = ("--max-tokens", 2, "--json", "--no-cache-dir")
    for name, model, more in (("fills", filling, ()), ("plain", filling, ("--no-suffix",)), ("other", model_dir, ())):
        facts = json.loads(run("complete", place, "--model", model, *options, *more).out)
        counts[name] = (facts["suffix_tokens"], facts["stats"]["prompt_tokens"])
    after = "four():\n    return double(2)\n"
    size = len(tokenizer.encode(after, parse_special=False))
    assert counts["fills"][0] == size and counts["plain"] == counts["other"] == (0, counts["plain"][1])
    assert counts["fills"][1] == counts["plain"][1] + size + 3
    at_the_end = json.loads(run("complete", source_dir / "main.py", "--model", filling, *options).out)
    assert at_the_end["suffix_tokens"] == 0
    streamed = run("complete", place, "--model", filling, *options[:2])
    assert f"; {size} tokens after the cursor" in streamed.err


def test_a_gap_stands_behind_the_other_files(model_dir: Path) -> None:
    tokenizer = Tokenizer.load(model_dir)
    entry = PackedFile(name="a", tokens=0, lines=1, total_lines=1)
    pieces = ("# file: b\none\n", "# file: a\nx =\n y")
    packed = PackedContext(pieces=pieces, files=(entry, entry), left_out=(), skipped=(), tokens=0)
    tokens = fill_tokens(tokenizer)
    assert tokens is not None
    ids = encode_context(packed, tokenizer, Gap(tokens=tokens, after=tokenizer.encode("z")))
    assert tokenizer.decode(ids) == (
        f"# file: b\none\n{END_OF_TEXT}# file: a\n<|code_suffix|>z<|code_prefix|>x =\n y<|code_middle|>"
    )


def test_ctrl_c_while_text_is_written() -> None:
    """With `nano`, which is still writing when the signal arrives; the smallest models are not always."""
    command = [sys.executable, "-m", "indexshare", "generate", "def f", "--max-tokens", "4000", "--model", "nano"]
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        error = process.stderr.read().decode()
        assert process.wait(timeout=60) == 130
    assert first
    assert error == "\nstopped\n"


def test_an_interrupt_is_a_clean_stop(run: Run, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from indexshare.engine.llm import LLM

    def interrupted(*args: object, **kwargs: object) -> Iterator[object]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(LLM, "stream", interrupted)
    result = run("generate", "x", "--model", model_dir)
    assert result.code == 130
    assert result.err.endswith("stopped\n")
    assert "Traceback" not in result.err


def test_a_cache_beyond_all_numbers_is_one_line(run: Run, model_dir: Path) -> None:
    result = run("generate", "def", "--model", model_dir, "--max-tokens", 1, "--cache-tokens", 10**20)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "make the cache smaller" in result.err


def test_the_cache_may_be_kept_in_few_bits(run: Run, model_dir: Path) -> None:
    options = ("generate", "def f(x):", "--model", model_dir, "--max-tokens", 4, "--json")
    kept = run(*options, "--cache-dtype", "int8", "--index-cache-dtype", "bfloat16")
    assert kept.code == 0 and len(json.loads(kept.out)["completions"][0]["token_ids"]) == 4
    for option in ("--cache-dtype", "--index-cache-dtype"):
        refused = run(*options, option, "int9")
        assert refused.code != 0
        assert f"{option} is 'int9'; did you mean 'int8'? expected one of float32, bfloat16" in refused.err
