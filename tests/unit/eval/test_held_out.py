"""Held-out scoring: exact code lengths, and what is refused."""

import json
import math
from pathlib import Path

import pytest
import torch

from indexshare.checkpoint.load import save_model
from indexshare.cli import main
from indexshare.config import preset
from indexshare.data.corpus import read_folder
from indexshare.data.splitting import Document
from indexshare.eval.held_out import (
    bits_by_position,
    evaluate_held_out,
    held_out_documents,
    other_text,
    package_split,
    some_documents,
    xz_bits,
)
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe
from indexshare.train.losses import next_token_loss, token_losses

TEXTS = [f"def f{i}(x):\n    return x * {i} + {i * 7}\n" * (i + 3) for i in range(12)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(iter(TEXTS), 300, SPECIAL_TOKENS)


def documents() -> list[Document]:
    return [Document(name=f"m{i}.py", text=text) for i, text in enumerate(TEXTS)]


def test_another_folder_is_read_as_the_training_text_was(tmp_path: Path) -> None:
    (tmp_path / "notes" / "drafts").mkdir(parents=True)
    for name in ("a.md", "drafts/b.md", "c.py", "d.txt"):
        (tmp_path / "notes" / name).write_text(f"{name}\n")

    def names(record: object, *patterns: str) -> list[str]:
        (tmp_path / "training.json").write_text(json.dumps(record))
        return [d.name for d in read_folder(other_text(tmp_path, tmp_path / "notes", patterns)).documents]

    own = {"path": "/elsewhere", "pattern": ["**/*.md", "**/*.txt"], "exclude": ["drafts", "runs/x/"], "held_out": 0.1}
    assert names({"text": own}) == ["a.md", "d.txt"]
    assert names({"text": own}, "*.py") == ["c.py"]
    assert names({"text": own | {"max_bytes": 5}}) == ["a.md"]
    library = {"path": "stdlib", "pattern": "**/*.py", "exclude": ["drafts"]}
    assert names({"text": library}, "*.md") == ["a.md", "drafts/b.md"]
    assert names({"text": {"base": library, "packages": [{"name": "x"}]}}) == ["c.py"]
    for record in ({}, [], {"text": None}, {"text": {"later": 1}}):
        assert names(record) == ["c.py"]


def test_some_of_the_files() -> None:
    everything = documents()
    some = some_documents(everything, 5, 0)
    assert len(some) == 5 and [d for d in everything if d in some] == some
    assert some_documents(everything, 5, 0) == some != some_documents(everything, 5, 1)
    assert some_documents(everything, None, 0) == some_documents(everything, 99, 0) == everything


def silent_model(tokenizer: Tokenizer) -> GlmMoeDsa:
    """Every logit zero: each token costs log2(vocabulary) bits wherever it stands."""
    model = GlmMoeDsa(preset("tiny").replace(vocab_size=tokenizer.vocab_size)).initialise(0).eval()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    return model


def test_a_uniform_model_costs_the_logarithm_of_its_vocabulary(tokenizer: Tokenizer) -> None:
    report = evaluate_held_out(silent_model(tokenizer), tokenizer, documents(), max_tokens=64)
    tokens = sum(len(tokenizer.encode(text, parse_special=False)) for text in TEXTS)
    expected = tokens * math.log2(tokenizer.vocab_size) / sum(map(len, TEXTS))
    assert report.sparse == pytest.approx(expected, rel=1e-5)
    assert report.full == pytest.approx(expected, rel=1e-5)
    assert report.num_bytes == sum(map(len, TEXTS))
    assert report.xz == pytest.approx(sum(map(xz_bits, TEXTS)) / report.num_bytes)
    assert all(bits == pytest.approx(math.log2(tokenizer.vocab_size), rel=1e-5) for bits in report.position_bits)


def test_positions_cover_the_window(tokenizer: Tokenizer) -> None:
    edges, bits, windows = bits_by_position(silent_model(tokenizer), tokenizer, documents(), max_tokens=600)
    assert edges == (0, 256, 512, 600) and len(bits) == 3 and windows > 0
    assert bits_by_position(silent_model(tokenizer), tokenizer, documents()[:1], max_tokens=600) == ((), (), 0)


def test_token_losses_sum_to_the_loss() -> None:
    hidden, weight, targets = torch.randn(33, 8), torch.randn(50, 8), torch.randint(0, 50, (33,))
    mean = next_token_loss(hidden, weight, targets)
    torch.testing.assert_close(token_losses(hidden, weight, targets).mean(), mean)


def test_refusals(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no documents"):
        evaluate_held_out(silent_model(tokenizer), tokenizer, [])
    with pytest.raises(ValueError, match="context is 4096"):
        evaluate_held_out(silent_model(tokenizer), tokenizer, documents(), max_tokens=5000)
    (tmp_path / "one.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="is held out"):
        held_out_documents({"path": str(tmp_path), "held_out": 0.0})


@pytest.mark.slow
def test_unseen_packages_are_scored_as_they_are_installed(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site, folder = tmp_path / "site", tmp_path / "model"
    for name in ("shop", "depot"):
        files = {f"{name}/m{i}.py": text.replace("def f", f"def {name}_f") for i, text in enumerate(TEXTS)}
        for path, text in files.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(text)
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\nLicense-Expression: MIT\n")
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))
    monkeypatch.syspath_prepend(str(site))
    save_model(silent_model(tokenizer), folder)
    tokenizer.save(folder)
    assert {d.name for d in package_split(folder, ["shop"]).held_out} == {f"shop/m{i}.py" for i in range(len(TEXTS))}
    small = ["--max-tokens", "64", "--context", "700", "--json"]
    arguments = ["eval", str(folder), "--suite", "held-out,repository", *small]
    assert main([*arguments, "--packages", "shop, depot"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["files"] == facts["repository"]["files"] == 2 * len(TEXTS)
    assert all(row["context_files"] > 0 for row in facts["repository"]["by_file"])
    record = {"base": {"path": str(site)}, "packages": [{"name": "depot"}], "whole": [{"name": "shop"}]}
    (folder / "training.json").write_text(json.dumps({"text": record}))
    assert package_split(folder, ["shop"]).held_out
    for names, message in (
        ("depot", "the model was trained on depot"),
        ("no-such-package", "pip install -c constraints.txt no-such-package"),
    ):
        assert main([*arguments, "--packages", names]) == 2
        assert message in capsys.readouterr().err
    assert main([*arguments, "--packages", "shop", "--text", str(site)]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_the_verb(tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(silent_model(tokenizer), tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    for document in documents():
        (tmp_path / document.name).write_text(document.text)
    assert main(["eval", str(tmp_path / "model"), "--max-tokens", "64"]) == 2
    assert "give a folder with --text" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "model"), "--text", str(tmp_path), "--max-tokens", "64", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["files"] == len(TEXTS) and facts["sparse"] > 0
    assert main(["eval", str(tmp_path / "model"), "--text", str(tmp_path), "--device", "cuda:77"]) == 2
    assert "CUDA devices" in capsys.readouterr().err
    training = {"text": {"path": str(tmp_path), "held_out": 0.5}}
    (tmp_path / "model" / "training.json").write_text(json.dumps(training))
    assert main(["eval", str(tmp_path / "model"), "--max-tokens", "64"]) == 0
    assert "bits per byte" in capsys.readouterr().out
    assert len(held_out_documents({"path": str(tmp_path), "held_out": 0.5})) < len(TEXTS)
