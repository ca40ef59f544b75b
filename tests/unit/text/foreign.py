"""Tokenizer files as other programs write them, to be changed and read again."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from indexshare.text.tokenizer import train_bpe

TEXTS = [
    "def read_file(path):\n    with open(path) as file:\n        return file.read()\n",
    "# Grüße, 日本語, 🙂\n",
] * 5
SPECIAL = ("<|endoftext|>", "<|user|>")
SAMPLE = "def read_file(path):\n    return 'Grüße, 日本語, 🙂 <0x41> ▁' <|user|> +  x\t\u200d\n" * 3
Edit = Callable[[dict[str, Any]], object]


def flags(**changes: Any) -> dict[str, Any]:
    """An added token's flags."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return plain | changes


def write(folder: Path, tokenizer: dict[str, Any], config: dict[str, Any] | None = None) -> Path:
    """`tokenizer.json` and, if given, `tokenizer_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def byte_level(folder: Path, edit: Edit = lambda data: None, config: dict[str, Any] | None = None) -> Path:
    """A byte-level vocabulary of 312 entries in the file's form of transformers, after `edit`."""
    data = json.loads(train_bpe(TEXTS, 320, SPECIAL).rust.to_str())
    edit(data)
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[0]}
    return write(folder, data, plain if config is None else config)


def llama(folder: Path, edit: Edit = lambda data: None, config: dict[str, Any] | None = None) -> Path:
    """BPE with byte fallback as converted from sentencepiece: spaces as U+2581, a first token, one space stripped."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [("▁", "d"), ("e", "f"), ("▁d", "ef"), ("r", "e"), ("▁", "re"), ("▁", "▁"), ("▁▁", "▁▁"), ("ü", "ß")]
    pieces = sorted("▁defrautnihplsx()'=,:日本üß") + [a + b for a, b in merges]
    names += pieces
    added = [flags(id=i, content=name, normalized=False) for i, name in enumerate(names[:3])]
    first = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": first,
            "pair": [*first, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {name: i for i, name in enumerate(names)},
            "merges": [list(pair) for pair in merges],
        },
    }
    edit(data)
    plain = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    return write(folder, data, plain if config is None else config)


def metaspace(data: dict[str, Any]) -> None:
    """The newer form: a pre-tokenizer puts the spaces in."""
    data["normalizer"] = None
    data["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


def public(folder: Path) -> Any:
    """What transformers reads."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
