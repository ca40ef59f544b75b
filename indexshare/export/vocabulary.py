"""A `tokenizer.json` under llama.cpp's keys: tokens, merges, special ids, and the name of its pre-tokenizer.

llama.cpp does not read the rule that cuts text into words; it knows a list of rules by name (`src/llama-vocab.cpp`).
A tokenizer whose rule is not on the list gets other tokens there than it was trained with, in silence. The one that
`indexshare.text.tokenizer` trains is not on it, and is written as close to it as the format allows: see
`_indentations`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from indexshare.config.generation import GenerationDefaults
from indexshare.config.model import ModelConfig
from indexshare.export.llama_cpp import Value
from indexshare.text.tokenizer import CODE_PATTERN, Tokenizer

# Kinds of token (`llama_token_type`). Control tokens are found in text only where a caller asks for it and print
# nothing; user-defined ones are found in any text, before it is cut into words.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

_GLM = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Like ours but for line breaks: single digits, a sign may join the word after it, no English contractions.
NEAREST_TO_CODE = "ufakzeka"

# llama.cpp's name by the patterns applied in turn and by `ignore_merges` (whether a word that is itself in the
# vocabulary skips the merges), which llama.cpp ties to the name.
_KNOWN: dict[tuple[tuple[str, ...], bool], str] = {
    ((_GLM,), True): "glm4",
    ((_GLM,), False): "chatglm-bpe",
    (_DEEPSEEK, False): "deepseek-v3",
    ((_GPT2,), False): "gpt-2",
    ((CODE_PATTERN,), False): NEAREST_TO_CODE,
}
# Two rules are taken for one if they cut these alike: patterns can be spelled in many ways.
_PROBES = (
    "def f(self, x):\n    return x.a_b['k'] + 1\n\n\n\tif x:  # note\n        pass\n",
    "I'll say it's HE'S DON'T we've 'tis 'quoted' \"don't\" x='s'",
    "0 12 345 6789 12345678 3.14 1e-5 v2 2x a1b22c333d4444 ٣٤٥٦ Ⅷ ½",
    "  two\u00a0\u3000spaces   and\t\ttabs \t mixed  \r\n \r\n\n \n  end   ",
    "...!? -- == != a==b ->x @y #z $w %v ^&*() ((a)) [[b]] {{c}} <|d|> \\n // ;;\n;\n",
    "naïve Ελληνικά русский язык 中文字符 ひらがなカタカナ漢字 한국어 עברית हिन्दी é cafe\u0301 😀👍🏽 ←→ €5 ±1",
    "a\n b\n\n  c\n\n\n   d \n e\t\nf\r\ng\rh \u2028 i",
)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A tokenizer in llama.cpp's terms.

    Attributes:
        tokens: text of every id, in the printable stand-ins of byte-level BPE; plain for control and user-defined.
        types: kind of every id.
        merges: pairs in order of rank, the two halves separated by a space.
        pre: llama.cpp's name of the pre-tokenizer; `exact` is false if it is only the nearest.
        special: ids by llama.cpp's name of their use (`bos`, `eos`, ...).
        add_bos: whether a text begins with the `bos` token; `add_eos`: whether it ends with `eos`. The post-processor
            of `tokenizer.json` says so, as in transformers.
        bare: tokens that the post-processor puts around a text and that llama.cpp cannot be told to add.
        chat_template: Jinja source, or None.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    exact: bool
    special: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    bare: tuple[str, ...] = ()
    chat_template: str | None = None

    def metadata(self) -> dict[str, Value]:
        """Everything by llama.cpp's key, in the order it is written."""
        facts: dict[str, Value] = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": self.types,
            "tokenizer.ggml.merges": self.merges,
        }
        facts |= {f"tokenizer.ggml.{use}_token_id": token for use, token in self.special.items()}
        facts |= {"tokenizer.ggml.add_bos_token": self.add_bos, "tokenizer.ggml.add_eos_token": self.add_eos}
        if self.chat_template is not None:
            facts["tokenizer.chat_template"] = self.chat_template
        return facts


def read_vocabulary(directory: Path, config: ModelConfig) -> Vocabulary:
    """The tokenizer of a model directory.

    Raises:
        ValueError: there is none, it is not byte-level BPE, llama.cpp has no pre-tokenizer for it, or it does not
            fit `config`.
    """
    if not (directory / "tokenizer.json").is_file():
        raise ValueError(
            f"{directory} has no tokenizer.json; copy the model's there, or export without one, for token ids alone"
            " (--no-tokenizer, tokenizer=False)"
        )
    ends = GenerationDefaults.load(directory).eos_token_ids
    config = config if ends is None else config.replace(eos_token_id=ends)
    tokenizer = Tokenizer.load(directory)  # the error text for a damaged file is there
    settings = _read_json(directory / "tokenizer_config.json")
    data = _read_json(directory / "tokenizer.json")
    _require_byte_level(data, directory)
    ignores = bool(data["model"].get("ignore_merges", False))
    pre = _pre_tokenizer(tokenizer.rust, ignores, directory)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the ids of the tokenizer of {directory} end at {tokenizer.vocab_size - 1}, but vocab_size in config.json"
            f" is {config.vocab_size}; it belongs to another model"
        )
    tokens, types = _tokens(tokenizer, config.vocab_size)
    if pre == NEAREST_TO_CODE:
        _indentations(tokenizer, tokens, types)
    pairs = data["model"]["merges"]
    special = _special(config, tokens, types, directory)
    before, after = tokenizer.around
    if len(before) == 1:
        special["bos"] = before[0]
    add_bos, add_eos = len(before) == 1, after == (special["eos"],)
    return Vocabulary(
        tokens=tokens,
        types=types,
        merges=[pair if isinstance(pair, str) else " ".join(pair) for pair in pairs],
        pre=pre,
        exact=pre != NEAREST_TO_CODE,
        special=special,
        add_bos=add_bos,
        add_eos=add_eos,
        bare=tuple(tokens[i] for i in (before if not add_bos else ()) + (after if not add_eos else ())),
        chat_template=_chat_template(directory, settings),
    )


def _read_json(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _require_byte_level(data: dict[str, Any], directory: Path) -> None:
    model, normalizer = data["model"], data.get("normalizer")
    if normalizer and normalizer.get("normalizers", normalizer):
        raise ValueError(f"the tokenizer of {directory} changes text ({normalizer.get('type')}); llama.cpp would not")
    odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    decoder = (data.get("decoder") or {}).get("type")
    if model.get("type") != "BPE" or decoder != "ByteLevel" or odd or model.get("byte_fallback"):
        raise ValueError(
            f"the tokenizer of {directory} is {model.get('type')} with decoder {decoder}"
            f"{' and ' + ', '.join(odd) if odd else ''}; only plain byte-level BPE can be exported"
        )
    if not model.get("merges"):
        raise ValueError(f"the tokenizer of {directory} has no merges, and llama.cpp refuses such; train a larger one")


def _pre_tokenizer(rust: RustTokenizer, ignores_merges: bool, directory: Path) -> str:
    """llama.cpp's name for the rule by which `rust` cuts text into words."""
    own = rust.pre_tokenizer
    found = [own.pre_tokenize_str(text) for text in _PROBES] if own is not None else None
    for (patterns, ignoring), name in _KNOWN.items():
        cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        rule = pre_tokenizers.Sequence([*cuts, byte_level])
        if ignoring == ignores_merges and found == [rule.pre_tokenize_str(text) for text in _PROBES]:
            return name
    names = ", ".join(sorted(set(_KNOWN.values()) - {NEAREST_TO_CODE}))
    raise ValueError(
        f"the tokenizer of {directory} cuts text into words by a rule that is none of {names}, nor that of this"
        " package; llama.cpp would give it other tokens. Export without it (--no-tokenizer, tokenizer=False) and pass"
        " token ids"
    )


def _tokens(tokenizer: Tokenizer, size: int) -> tuple[list[str], list[int]]:
    """Text and kind of every id; ids that no token has are filled up, as llama.cpp wants one text per row."""
    tokens, types = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for text, i in tokenizer.entries.items():
        tokens[i], types[i] = text, NORMAL
    for text, i in tokenizer.added_tokens.items():
        types[i] = CONTROL if text in tokenizer.special_tokens else USER_DEFINED
    return tokens, types


def _indentations(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Make every token of line breaks with an indentation after them user-defined, in place.

    Our rule keeps a line break and the indentation after it in one word. No rule of llama.cpp does, and one token in
    eight of a program would be another than in training. User-defined tokens are cut out first, the longest first; on
    what remains the rules agree. What still differs, one token in a thousand: indentations that are not one token,
    white space before an indented line or at the end of the text, and exotic white space. Plain line breaks stay
    ordinary: llama.cpp cuts them as we do, and looks for its line feed before it knows the fixed tokens.
    """
    for i, kind in enumerate(types):
        raw = tokenizer.token_bytes(i) if kind == NORMAL else b""
        if b"\n" in raw and raw.endswith((b" ", b"\t")) and raw.isascii():
            tokens[i], types[i] = raw.decode("ascii"), USER_DEFINED


def _special(config: ModelConfig, tokens: list[str], types: list[int], directory: Path) -> dict[str, int]:
    """Ids by use. GLM's three ends of a turn are llama.cpp's end of text, of turn and of message."""
    ends = config.eos_token_ids
    if not ends:
        raise ValueError(f"config.json of {directory} names no eos_token_id; llama.cpp would end texts at token 11")
    if len(ends) > 3:
        raise ValueError(f"config.json of {directory} names {len(ends)} eos_token_id; llama.cpp has a place for 3")
    special = dict(zip(("eos", "eot", "eom"), ends, strict=False))
    # A default of transformers' configuration class, such as 0, is not this model's choice.
    chosen = config.bos_token_id
    if chosen is not None and chosen < len(types) and types[chosen] == CONTROL:
        special["bos"] = chosen
    else:
        special["bos"] = tokens.index("[gMASK]") if "[gMASK]" in tokens else ends[0]
    if config.pad_token_id is not None:
        special["padding"] = config.pad_token_id
    for use, token in special.items():
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"config.json of {directory} gives {use} the id {token}, outside 0..{config.vocab_size}")
    return special


def _chat_template(directory: Path, settings: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) and template else None
