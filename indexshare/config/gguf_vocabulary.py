"""The tokenizer in a GGUF file as the files of a model directory: `tokenizer.json` and its neighbours.

llama.cpp names the rule that cuts text into words; what the names stand for is in its `src/llama-vocab.cpp`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from indexshare.config.arguments import shown

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # kinds of token that are no part of a word
_APART = (_CONTROL, _USER_DEFINED, _UNUSED)
_SPACE = "\u2581"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2, _DIGITS = "GPT-2's words", "GPT-2's words, every digit apart"
# The rule, whether a word that is in the vocabulary skips the merges, and whether a text begins with the token `bos`
# where the file does not say.
_RULES: dict[str, tuple[str, bool, bool]] = {
    "gpt-2": (_GPT2, False, False),
    "smollm": (_DIGITS, False, False), "starcoder": (_DIGITS, False, False), "refact": (_DIGITS, False, False),
    "command-r": (_DIGITS, False, False), "codeshell": (_DIGITS, False, False), "exaone": (_DIGITS, False, False),
    "llama-bpe": (_LLAMA3, True, True), "llama3": (_LLAMA3, True, True), "llama-v3": (_LLAMA3, True, True),
    "smaug-bpe": (_LLAMA3, False, False), "dbrx": (_LLAMA3, False, False),
    "qwen2": (_QWEN2, False, False), "deepseek-r1-qwen": (_QWEN2, False, False), "megrez": (_QWEN2, False, False),
    "tekken": (_TEKKEN, True, True),
}  # fmt: skip
_USES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def tokenizer_files(keys: Mapping[str, Any], vocabulary: int) -> dict[str, bytes]:
    """Contents of a model directory's tokenizer files by name; none where the file has no tokenizer.

    Args:
        keys: of the GGUF file.
        vocabulary: entries of the model's embedding.

    Raises:
        ValueError: a kind of tokenizer, or a rule, that is not read; lists that do not fit one another.
    """
    kind = keys.get("tokenizer.ggml.model", "none")
    if kind == "none":
        return {}
    tokens = _texts(keys, "tokens")
    if len(tokens) > vocabulary or len(set(tokens)) != len(tokens):
        raise ValueError(
            f"tokenizer.ggml.tokens has {len(tokens)} entries, {len(set(tokens))} different ones; the embedding has "
            f"{vocabulary} rows"
        )
    types = keys.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise ValueError(f"tokenizer.ggml.token_type is {shown(types)}; expected a number for each of the tokens")
    if kind == "gpt2":
        data, begins = _byte_level(keys, tokens)
    elif kind == "llama":
        data, begins = _with_byte_fallback(keys, tokens)
    else:
        raise ValueError(f"tokenizer.ggml.model is {shown(kind)}; read are 'gpt2' and 'llama'")
    special = {name: _token(keys, theirs, tokens) for name, theirs in _USES.items()}
    data["added_tokens"] = [_added(i, token, types[i]) for i, token in enumerate(tokens) if types[i] in _APART]
    data["post_processor"] = _around(keys, special, begins) or data["post_processor"]
    config: dict[str, Any] = {f"{name}_token": token for name, token in special.items() if token is not None}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    files = {"tokenizer.json": _json(data), "tokenizer_config.json": _json(config)}
    template = keys.get("tokenizer.chat_template")
    if template is not None:
        if not isinstance(template, str):
            raise ValueError(f"tokenizer.chat_template is {shown(template)}; expected a text")
        files["chat_template.jinja"] = template.encode("utf-8")
    return files


def end_ids(keys: Mapping[str, Any]) -> list[int]:
    """Ids that end a text or a turn."""
    found = [keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return list(dict.fromkeys(i for i in found if type(i) is int))


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode("utf-8")


def _texts(keys: Mapping[str, Any], name: str) -> list[str]:
    values = keys.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"tokenizer.ggml.{name} is {shown(values)}; expected a list of texts")
    return values


def _token(keys: Mapping[str, Any], name: str, tokens: list[str]) -> str | None:
    i = keys.get(f"tokenizer.ggml.{name}_token_id")
    if i is None:
        return None
    if type(i) is not int or not 0 <= i < len(tokens):
        raise ValueError(f"tokenizer.ggml.{name}_token_id is {shown(i)}; expected an id below {len(tokens)}")
    return tokens[i]


def _added(i: int, token: str, kind: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": token, "special": kind != _USER_DEFINED} | flags


def _byte_level(keys: Mapping[str, Any], tokens: list[str]) -> tuple[dict[str, Any], bool]:
    """Byte-level BPE, and whether a text begins with `bos` by its rule."""
    name = keys.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in _RULES:
        said = "missing" if name is None else shown(name)
        raise ValueError(
            f"tokenizer.ggml.pre is {said}, a rule of words that is not known; known are {', '.join(_RULES)}"
        )
    rule, whole_words, begins = _RULES[name]
    merges = [merge.split(" ") for merge in _texts(keys, "merges")]
    if any(len(pair) != 2 for pair in merges):
        raise ValueError("tokenizer.ggml.merges has an entry that is no pair; the file is damaged")
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": rule in (_GPT2, _DIGITS),
    }
    words: list[dict[str, Any]] = [level]
    if rule == _DIGITS:
        words = [{"type": "Digits", "individual_digits": True}, level]
    elif rule != _GPT2:
        words = [{"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}, level]
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": words}, "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(tokens, merges, ignore_merges=whole_words),
    }, begins  # fmt: skip


def _bpe(tokens: list[str], merges: list[list[str]], **more: Any) -> dict[str, Any]:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    for pair in merges:
        if pair[0] not in vocabulary or pair[1] not in vocabulary or "".join(pair) not in vocabulary:
            raise ValueError(f"tokenizer.ggml.merges joins {shown(pair)}, which the tokens do not have; it is damaged")
    base: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    base |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
    return base | more | {"vocab": vocabulary, "merges": merges}


def _with_byte_fallback(keys: Mapping[str, Any], tokens: list[str]) -> tuple[dict[str, Any], bool]:
    """A SentencePiece vocabulary as BPE: what joins to a token of a higher score is joined first."""
    scores = keys.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ValueError(f"tokenizer.ggml.scores is {shown(scores)}; expected a number for each of the tokens")
    prefixed = keys.get("tokenizer.ggml.add_space_prefix", True)
    steps: list[dict[str, Any]] = [{"type": "Prepend", "prepend": _SPACE}] if prefixed else []
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}
    ]  # fmt: skip
    if prefixed:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = _token(keys, "unknown", tokens)
    return {
        "version": "1.0", "truncation": None, "padding": None, "post_processor": None, "pre_tokenizer": None,
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(tokens, _merges(tokens, scores), byte_fallback=True, fuse_unk=True, unk_token=unknown),
    }, True  # fmt: skip


def _merges(tokens: list[str], scores: list[float]) -> list[list[str]]:
    """All ways to make a token of two others, as transformers makes them of such a vocabulary."""
    ids = {token: i for i, token in enumerate(tokens)}
    found: list[tuple[str, str, float]] = []
    for token, score in zip(tokens, scores, strict=True):
        pairs = [(token[:at], token[at:], score) for at in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        found.extend(sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]])))
    found.sort(key=lambda pair: (pair[2], len(pair[0]), len(pair[1])), reverse=True)
    return [[left, right] for left, right, _ in found]


def _around(keys: Mapping[str, Any], special: Mapping[str, str | None], begins: bool) -> dict[str, Any] | None:
    """The post-processor that adds `bos` before a text or `eos` behind it, if either is wanted."""
    ids: dict[str, int] = {}
    sides: list[list[dict[str, Any]]] = []
    for use, default in (("bos", begins), ("eos", False)):
        wanted = keys.get(f"tokenizer.ggml.add_{use}_token", default)
        token = special[use]
        if wanted and token is None:
            raise ValueError(f"tokenizer.ggml.add_{use}_token is true, but there is no {use}_token_id")
        if wanted and token is not None:
            ids[token] = keys[f"tokenizer.ggml.{use}_token_id"]
        sides.append([{"SpecialToken": {"id": token, "type_id": 0}}] if wanted else [])
    if not ids:
        return None
    single = [*sides[0], {"Sequence": {"id": "A", "type_id": 0}}, *sides[1]]
    named = {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in ids.items()}
    return {
        "type": "TemplateProcessing", "single": single, "special_tokens": named,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
    }  # fmt: skip
