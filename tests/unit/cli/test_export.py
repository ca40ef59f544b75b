"""`indexshare export`: what it writes, says and refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_it_says_what_it_wrote(run: Callable[..., Any], model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.gguf"
    result = run("export", model_dir, "--gguf", out, "--type", "q8_0")
    assert result.code == 0
    assert out.read_bytes()[:4] == b"GGUF"
    lines = result.out.splitlines()
    assert lines[0] == str(out)
    assert f"({out.stat().st_size:,} bytes)" in lines[1]
    facts = dict(line.split(maxsplit=1) for line in lines[1:])
    assert facts["architecture"] == "glm-dsa"
    assert "Q8_0" in facts["tensors"]
    assert facts["tokenizer"] == "llama.cpp's pre-tokenizer 'ufakzeka'"
    assert "rows no multiple of 32" in facts["left"]
    assert result.err.count("note: ") == 3


def test_json_is_the_report(run: Callable[..., Any], model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.gguf"
    result = run("export", model_dir, "--gguf", out, "--no-tokenizer", "--json")
    facts = json.loads(result.out)
    assert (facts["type"], facts["path"], facts["num_bytes"]) == ("bf16", str(out), out.stat().st_size)
    assert (facts["pre_tokenizer"], facts["not_quantized"], facts["dropped"]) == (None, [], {})
    assert set(facts["tensors"]) == {"BF16", "F32"}
    assert len(facts["notes"]) == 2
    again = tmp_path / "again.gguf"
    run("export", model_dir, "--gguf", again, "--no-tokenizer")
    assert again.read_bytes() == out.read_bytes()


def test_mistakes_are_one_line(run: Callable[..., Any], model_dir: Path, tmp_path: Path) -> None:
    for arguments, text in (
        (("nanno", "--gguf", tmp_path / "x"), "did you mean 'nano'?"),
        ((model_dir, "--gguf", tmp_path), "is a directory"),
        ((model_dir,), "--gguf"),
        ((model_dir, "--gguf", tmp_path / "x", "--type", "q4_0"), "q4_0"),
    ):
        result = run("export", *arguments)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("error: ") and text in result.err
        assert result.err.count("\n") == 1
