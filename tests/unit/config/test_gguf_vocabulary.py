"""Tokenizers of GGUF files: the same ids as the tokenizer that was written, and what does not fit is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from indexshare.config.gguf_vocabulary import _RULES, end_ids, tokenizer_files
from indexshare.text.tokenizer import Tokenizer as OurTokenizer

TEXT = "def f(self, x2):\n    return x2 + 1200  # it's naïve, we'll see\n\n\nclass A(B): pass\n" * 3
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def trained(rule: str, whole_words: bool) -> Tokenizer:
    """Byte-level BPE of a few hundred entries that cuts words by one of the rules."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    words: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule.startswith("GPT-2"))]
    if rule.endswith("apart"):
        words.insert(0, pre_tokenizers.Digits(individual_digits=True))
    elif not rule.startswith("GPT-2"):
        words.insert(0, pre_tokenizers.Split(Regex(rule), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def keys_of(tokenizer: Tokenizer, pre: str) -> dict[str, Any]:
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }  # fmt: skip


def loaded(folder: Path, keys: dict[str, Any]) -> OurTokenizer:
    for name, content in tokenizer_files(keys, 400).items():
        (folder / name).write_bytes(content)
    return OurTokenizer.load(folder)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"])
def test_byte_level_rules(tmp_path: Path, pre: str) -> None:
    rule, whole_words, begins = _RULES[pre]
    original = trained(rule, whole_words)
    ours = loaded(tmp_path, keys_of(original, pre))
    for text in (TEXT, "x" * 40, "12345 1.5\r\n\t'S it's", "日本語 naïve 😀", "<|im_start|>user\nhi<|im_end|>"):
        assert ours.encode(text) == original.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
    assert ours.around == (((1,), ()) if begins else ((), ()))
    assert ours.eos_ids == (2,) and ours.special_tokens == {name: i for i, name in enumerate(SPECIAL)}
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ messages[0]['content'] }}"


def test_a_vocabulary_with_scores(tmp_path: Path) -> None:
    """Pieces with byte fallback, joined in the order of their scores."""
    pieces = ["▁", "t", "h", "e", "r", "▁t", "he", "▁the", "re", "▁there"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    scores = [0.0] * 259 + [-100.0] * 5 + [-1.0, -2.0, -3.0, -4.0, -5.0]
    keys = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 10, "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip
    ours = loaded(tmp_path, keys)
    ids = ours.encode("there the")
    assert [tokens[i] for i in ids] == ["▁there", "▁the"] and ours.decode(ids) == "there the"
    assert [tokens[i] for i in ours.encode("é")] == ["▁", "<0xC3>", "<0xA9>"]
    assert ours.encode_prompt("the")[0] == 1


def test_no_tokenizer() -> None:
    assert tokenizer_files({}, 10) == tokenizer_files({"tokenizer.ggml.model": "none"}, 10) == {}


def test_ids_that_end() -> None:
    keys = {"tokenizer.ggml.eos_token_id": 5, "tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 5}
    assert end_ids(keys) == [5, 7] and end_ids({}) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "mystery"}, "tokenizer.ggml.pre is 'mystery', a rule of words that is not known; known are gpt-2"),
        ({"pre": None}, "tokenizer.ggml.pre is missing"),
        ({"model": "t5"}, "tokenizer.ggml.model is 't5'; read are 'gpt2' and 'llama'"),
        ({"model": "llama"}, "tokenizer.ggml.scores is None"),
        ({"tokens": ["a", "a"]}, "2 entries, 1 different ones"),
        ({"tokens": [f"x{i}" for i in range(401)]}, "the embedding has 400 rows"),
        ({"tokens": [1]}, "expected a list of texts"),
        ({"token_type": [1]}, "expected a number for each of the tokens"),
        ({"merges": ["a b c"]}, "no pair"),
        ({"merges": ["Ġ nothing"]}, "which the tokens do not have"),
        ({"eos_token_id": 4000}, "eos_token_id is 4000; expected an id below"),
        ({"add_eos_token": True, "eos_token_id": None}, "there is no eos_token_id"),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    keys = keys_of(trained(*_RULES["gpt-2"][:2]), "gpt-2")
    keys |= {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        tokenizer_files({name: value for name, value in keys.items() if value is not None}, 400)
