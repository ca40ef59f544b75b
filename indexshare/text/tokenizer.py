"""Text to token ids and back: BPE whose text can be given back byte by byte, and incremental decoding for streaming.

The pre-tokenizer of the tokenizers trained here is made for Python source: a line break and the indentation after it
stay together, digits are split one by one, and one leading character such as a space, a dot or an underscore may join
the word after it.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as _RustTokenizer

from indexshare.text.special_tokens import ADDED_FILE, CONFIG_FILE, MAP_FILE, read_named_tokens
from indexshare.text.tokenizer_file import SPACE, TokenizerFile, byte_of_character, read_tokenizer

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER_FILE, CONFIG_FILE, MAP_FILE, ADDED_FILE, "chat_template.jinja")
END_OF_TEXT = "<|endoftext|>"
# The end of text comes first so that its id is 0; the rest are reserved for a chat template to come, and
# for filling in the middle (`fill.py`).
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


class Tokenizer:
    """A BPE vocabulary with its special tokens: byte-level, or text with byte fallback.

    Args:
        source: a checked file, or a `tokenizers` object, which is checked.
        eos_tokens: names of the tokens that end a text, the first being the one written by `save`.
        files: contents of the files it came from by name, written by `save` as they are.

    Raises:
        ValueError: a kind of tokenizer that is not supported, or an end-of-text token that is not in the vocabulary.
    """

    def __init__(
        self,
        source: TokenizerFile | _RustTokenizer,
        eos_tokens: Sequence[str] = (END_OF_TEXT,),
        *,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self._file = source if isinstance(source, TokenizerFile) else read_tokenizer(source.to_str())
        self._rust = self._file.rust
        self._lock = threading.Lock()
        self._eos_tokens = tuple(eos_tokens)
        self._files = dict(files or {})
        missing = [t for t in self._eos_tokens if t not in self._file.ids]
        if missing:
            raise ValueError(f"end-of-text tokens {missing} are not in the vocabulary; name tokens that are")

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Read `tokenizer.json` of a model directory, and what the files beside it say of its tokens.

        The token that ends a text is the one they name, or `<|endoftext|>` if the vocabulary has it.

        Raises:
            ValueError: no `tokenizer.json` in the directory, a damaged file, or a kind of tokenizer that is not
                supported; the text says which are.
        """
        folder = Path(directory)
        if not (folder / TOKENIZER_FILE).is_file():
            raise ValueError(f"no {TOKENIZER_FILE} in {directory}: expected a model or tokenizer directory")
        files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
        try:
            named = read_named_tokens(folder)
            file = read_tokenizer(files[TOKENIZER_FILE].decode("utf-8"), named.tokens)
        except ValueError as error:
            raise ValueError(f"cannot read the tokenizer of {folder}: {error}") from None
        eos = named.eos or (END_OF_TEXT if END_OF_TEXT in file.ids else None)
        return cls(file, () if eos is None else (eos,), files=files)

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` and the files beside it, as transformers' AutoTokenizer reads them.

        A tokenizer that was loaded is written as it came, byte for byte.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        files = self._files or self._own_files()
        for name in sorted(files, key=lambda name: name == TOKENIZER_FILE):  # last: its presence says all are there
            temporary = folder / (name + ".tmp")
            temporary.write_bytes(files[name])
            os.replace(temporary, folder / name)

    @property
    def settings(self) -> dict[str, Any]:
        """What `tokenizer_config.json` says, as it would be saved; empty where there is none, or it cannot be read."""
        try:
            found = json.loads((self._files or self._own_files()).get(CONFIG_FILE, b"{}"))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def with_setting(self, name: str, value: Any) -> Tokenizer:
        """The same tokenizer with one more entry in the `tokenizer_config.json` that it saves."""
        config = (json.dumps(self.settings | {name: value}, indent=2) + "\n").encode("utf-8")
        return Tokenizer(self._file, self._eos_tokens, files=(self._files or self._own_files()) | {CONFIG_FILE: config})

    def _own_files(self) -> dict[str, bytes]:
        eos = self._eos_tokens[0] if self._eos_tokens else None
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": eos,
            "eos_token": eos,
            "pad_token": eos,
            "clean_up_tokenization_spaces": False,
            "additional_special_tokens": [t for t in self.special_tokens if t != eos],
        }
        return {
            CONFIG_FILE: (json.dumps(config, indent=2) + "\n").encode("utf-8"),
            TOKENIZER_FILE: self._rust.to_str(pretty=True).encode("utf-8"),
        }

    @property
    def vocab_size(self) -> int:
        """The largest id plus one, special tokens included; some of the ids below it may have no token."""
        return self._vocab_size

    @cached_property
    def _vocab_size(self) -> int:
        return max(self._file.ids.values()) + 1

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a text."""
        return tuple(self.id_of(token) for token in self._eos_tokens)

    @property
    def end_id(self) -> int:
        """The id that ends a text, and stands between texts; ValueError when the tokenizer names none."""
        if not self._eos_tokens:
            raise ValueError(f"the tokenizer names no token that ends a text; give {CONFIG_FILE} an eos_token")
        return self.id_of(self._eos_tokens[0])

    @property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids that the tokenizer's post-processor puts before and after a prompt, both often empty."""
        return self._file.before, self._file.after

    @property
    def rust(self) -> _RustTokenizer:
        """The `tokenizers` object that cuts texts; its ids are not always the file's, which are those used here."""
        return self._rust

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the whole vocabulary and its rules."""
        digest = hashlib.sha256(self._rust.to_str().encode("utf-8"))
        if self._file.renumbered:
            digest.update(repr(sorted(self._file.renumbered.items())).encode("ascii"))
        return digest.hexdigest()

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Special tokens and their ids, by id."""
        return {self._file.added[i]: i for i in sorted(self._file.special)}

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """Tokens that are found in a text before it is cut into words, special or not, and their ids, by id."""
        return {name: i for i, name in sorted(self._file.added.items())}

    @property
    def entries(self) -> dict[str, int]:
        """Every entry of the vocabulary as the file spells it, added tokens included, and its id."""
        return dict(self._file.ids)

    def id_of(self, token: str) -> int:
        """Id of one vocabulary entry; ValueError when it is not in the vocabulary."""
        found = self._file.ids.get(token)
        if found is None:
            raise ValueError(f"token {token!r} is not in the vocabulary of {len(self._file.ids)} entries")
        return found

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
            rows = [e.ids for e in self._rust.encode_batch_fast(list(texts), add_special_tokens=False)]
        if self._file.renumbered:
            rows = [[self._file.renumbered.get(i, i) for i in row] for row in rows]
        return rows

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt: those of `text`, with what the post-processor puts around it (`around`).

        The same as transformers' AutoTokenizer gives for the text.
        """
        return [*self._file.before, *self.encode(text), *self._file.after]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of `ids`, as a text of its own: a decoder that strips the first space does so.

        Bytes that are not UTF-8 become U+FFFD, holes in the vocabulary nothing; ValueError for ids out of range.
        """
        text = self.decode_bytes(ids, skip_special=skip_special).decode("utf-8", errors="replace")
        return self.strip(text)[0]

    def strip(self, text: str, already: int = 0) -> tuple[str, int]:
        """`text` at the beginning of a decoded text, `already` spaces having been stripped, and how many now are."""
        count = min(len(text) - len(text.lstrip(" ")), max(self._file.stripped - already, 0))
        return text[count:], already + count

    def decode_bytes(self, ids: Sequence[int], *, skip_special: bool = False) -> bytes:
        """The exact bytes that `ids` stand for within a text."""
        return b"".join(self.token_bytes(i, skip_special=skip_special) for i in ids)

    def token_bytes(self, token_id: int, *, skip_special: bool = False) -> bytes:
        """Bytes of one token, possibly part of a UTF-8 character; empty for a skipped special token and for a hole."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(
                f"token id {token_id} is out of range: the ids of the vocabulary end at {self.vocab_size - 1}"
            )
        if skip_special and token_id in self._file.special:
            return b""
        return self._bytes_by_id.get(token_id, b"")

    @cached_property
    def _bytes_by_id(self) -> dict[int, bytes]:
        if self._file.byte_fallback:
            return {i: _text_or_byte(self._found_as(i, name)) for name, i in self._file.ids.items()}
        table, added = byte_of_character(), self._file.added
        return {
            i: name.encode("utf-8") if i in added else bytes(table[c] for c in name)
            for name, i in self._file.ids.items()
        }

    def _found_as(self, i: int, name: str) -> str:
        """What an entry of id `i` stands for in a normalised text: a space may belong to an added token there."""
        if i not in self._file.added:
            return name
        own = next((own for own, of_file in self._file.renumbered.items() if of_file == i), i)
        return self._rust.id_to_token(own) or name


_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


def _text_or_byte(name: str) -> bytes:
    """What an entry of a vocabulary with byte fallback stands for."""
    byte = _BYTE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(SPACE, " ").encode("utf-8")


class IncrementalDecoder:
    """Turns ids into text as they come, never giving half of a UTF-8 character.

    The pieces returned by `push`, then `finish`, join to `tokenizer.decode` of all ids; or, `continuing` a text that
    came before, to what they add to it: a space at the beginning stays.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True, continuing: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._at_start = not continuing
        self._stripped = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Text that became complete with this token, possibly empty."""
        text = self._utf8.decode(self._tokenizer.token_bytes(token_id, skip_special=self._skip_special))
        if self._at_start and text:
            text, self._stripped = self._tokenizer.strip(text, self._stripped)
            self._at_start = not text
        return text

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
