"""Text to token ids and back: byte-level BPE, lossless on any text, and incremental decoding for streaming.

The pre-tokenizer is made for Python source: a line break and the indentation after it stay together, digits are
split one by one, and one leading character such as a space, a dot or an underscore may join the word after it.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as _RustTokenizer

END_OF_TEXT = "<|endoftext|>"
# The end of text comes first so that its id is 0; the rest are reserved for a chat template to come.
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<think>",
    "</think>",
    "<|code_prefix|>",
    "<|code_suffix|>",
    "<|code_middle|>",
)
CODE_PATTERN = (
    r"(?:[ \t]*\r?\n)+[ \t]*"  # line breaks with the indentation that follows
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # a word, with at most one space or sign before it
    r"|\p{N}"  # one digit
    r"| ?[^\s\p{L}\p{N}]+"  # a run of signs
    r"|[ \t]+(?=[ \t])|\s+"  # inner spaces; the last one joins the word after it
)


def file_header(name: str) -> str:
    """The line that precedes every file, in training and when a context folder is laid out for the model."""
    return f"# file: {name}\n"


def _byte_of_character() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE vocabularies use for the 256 bytes (the GPT-2 table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in plain}
    for shift, byte in enumerate(b for b in range(256) if b not in set(plain)):
        table[chr(256 + shift)] = byte
    return table


class Tokenizer:
    """A byte-level BPE vocabulary with its special tokens.

    Args:
        rust: the `tokenizers` object; its model must be byte-level.
        eos_tokens: names of the tokens that end a text, the first being the one written by `save`.
    """

    def __init__(self, rust: _RustTokenizer, eos_tokens: Sequence[str] = (END_OF_TEXT,)) -> None:
        self._rust = rust
        self._lock = threading.Lock()
        self._eos_tokens = tuple(eos_tokens)
        missing = [t for t in self._eos_tokens if rust.token_to_id(t) is None]
        if missing:
            raise ValueError(f"end-of-text tokens {missing} are not in the vocabulary; name tokens that are")

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Read `tokenizer.json` (and `tokenizer_config.json` if present) of a model directory.

        Raises:
            ValueError: no readable `tokenizer.json` in the directory, or a damaged `tokenizer_config.json`.
        """
        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"no tokenizer.json in {directory}: expected a model or tokenizer directory")
        try:
            rust = _RustTokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises bare Exception
            raise ValueError(f"cannot read {path}: {error}; it must be a `tokenizers` JSON file") from error
        config_path = path.with_name("tokenizer_config.json")
        try:
            config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
        except ValueError as error:
            raise ValueError(f"cannot read {config_path}: {error}; it must be a JSON object") from error
        eos = config.get("eos_token") or END_OF_TEXT
        return cls(rust, (eos["content"] if isinstance(eos, dict) else eos,))

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, as transformers' AutoTokenizer reads them."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        eos = self._eos_tokens[0]
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": eos,
            "eos_token": eos,
            "pad_token": eos,
            "clean_up_tokenization_spaces": False,
            "additional_special_tokens": [t for t in self.special_tokens if t != eos],
        }
        for name, text in (
            ("tokenizer_config.json", json.dumps(config, indent=2) + "\n"),
            ("tokenizer.json", self._rust.to_str(pretty=True)),  # last: its presence says that both are complete
        ):
            temporary = folder / (name + ".tmp")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, folder / name)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._rust.get_vocab_size(with_added_tokens=True)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a text."""
        return tuple(self.id_of(token) for token in self._eos_tokens)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the whole vocabulary and its rules."""
        return hashlib.sha256(self._rust.to_str().encode("utf-8")).hexdigest()

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Special tokens and their ids, by id."""
        added = self._rust.get_added_tokens_decoder()
        return {token.content: i for i, token in sorted(added.items()) if token.special}

    def id_of(self, token: str) -> int:
        """Id of one vocabulary entry; ValueError when it is not in the vocabulary."""
        found = self._rust.token_to_id(token)
        if found is None:
            raise ValueError(f"token {token!r} is not in the vocabulary of {self.vocab_size} entries")
        return int(found)

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Token ids of `text`; nothing is added before or after.

        Args:
            text: any text without lone surrogates.
            parse_special: whether the names of special tokens in the text become their ids (as in a chat
                template) or stay ordinary text (as in data).
        """
        return self.encode_batch([text], parse_special=parse_special)[0]

    def encode_batch(self, texts: Sequence[str], *, parse_special: bool = True) -> list[list[int]]:
        """`encode` for many texts, on several threads."""
        for text in texts:
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"text holds a lone surrogate at character {error.start}, which no UTF-8 file can hold; "
                    "decode the source with errors='replace'"
                ) from error
        with self._lock:  # the setting belongs to the object that all threads share
            self._rust.encode_special_tokens = not parse_special
            return [e.ids for e in self._rust.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of `ids`. Bytes that are not UTF-8 become U+FFFD; ValueError for ids out of range."""
        return self.decode_bytes(ids, skip_special=skip_special).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int], *, skip_special: bool = False) -> bytes:
        """The exact bytes that `ids` stand for."""
        return b"".join(self.token_bytes(i, skip_special=skip_special) for i in ids)

    def token_bytes(self, token_id: int, *, skip_special: bool = False) -> bytes:
        """Bytes of one token, possibly part of a UTF-8 character; empty for a skipped special token."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id {token_id} is out of range: the vocabulary has {self.vocab_size} entries")
        if skip_special and token_id in self._special_ids:
            return b""
        return self._bytes_by_id[token_id]

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.special_tokens.values())

    @cached_property
    def _bytes_by_id(self) -> list[bytes]:
        table, added = _byte_of_character(), self._rust.get_added_tokens_decoder()
        result = [b""] * self.vocab_size
        for name, i in self._rust.get_vocab(with_added_tokens=True).items():
            if i in added:
                result[i] = added[i].content.encode("utf-8")
            else:
                result[i] = bytes(table[c] for c in name)
        return result


class IncrementalDecoder:
    """Turns ids into text as they come, never giving half of a UTF-8 character.

    The pieces returned by `push`, then `finish`, join to `tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Text that became complete with this token, possibly empty."""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id, skip_special=self._skip_special))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed, else empty."""
        return self._utf8.decode(b"", final=True)


def train_bpe(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = SPECIAL_TOKENS) -> Tokenizer:
    """Learn a byte-level BPE vocabulary suited to Python code.

    Args:
        texts: the training texts.
        vocab_size: ids in all: special tokens, the 256 bytes, then merges.
        special_tokens: they take the first ids in this order; the first one ends a text.

    Raises:
        ValueError: the vocabulary is too small for the bytes, or no special token is given.
    """
    if not special_tokens:
        raise ValueError("special_tokens is empty: at least the end-of-text token is needed")
    if vocab_size < 256 + len(special_tokens):
        raise ValueError(
            f"vocab_size {vocab_size} is too small: 256 bytes and {len(special_tokens)} special tokens "
            f"need at least {256 + len(special_tokens)}"
        )
    rust = _RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CODE_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rust.train_from_iterator(texts, trainer)
    return Tokenizer(rust, (special_tokens[0],))
