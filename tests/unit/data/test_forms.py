"""Forms of retrieval: facts are fresh, unambiguous and there; families are split by a rule; rows resume exactly."""

import ast
import random
import re
from pathlib import Path

import numpy as np
import pytest

import indexshare
from indexshare.data.corpus import TokenCorpus
from indexshare.data.forms import FORMS, HELD_OUT, TRAINED, AskedText, File, Form, ask_about, is_held_out_family
from indexshare.data.forms.planting import Planter
from indexshare.data.forms.questions import FILES, QUESTIONS
from indexshare.data.forms.statements import STATEMENTS, Statement
from indexshare.data.forms.text import cut, phrase
from indexshare.data.forms.values import Value, near_name, new_literal, new_name, words_of
from indexshare.data.sources import AskedForms, Material, make_source
from indexshare.data.splitting import Document
from indexshare.text.tokenizer import Tokenizer, train_bpe

ROOT = Path(indexshare.__file__).parent
FILES_OF_A_PACKAGE = [
    File(f"data/{p.relative_to(ROOT / 'data').as_posix()}", p.read_text(encoding="utf-8"))
    for p in sorted((ROOT / "data").rglob("*.py"))
]
# One real statement of every family, found once.
REAL = {
    "constant": "MAXIMUM_SIZE = 4096\n",
    "local": "def load(path):\n    buffer_size = 4096\n    return path[buffer_size]\n",
    "attribute": "class Reader:\n    def __init__(self):\n        self.limit = 4096\n",
    "field": "@dataclass\nclass Settings:\n    depth: int = 4096\n",
    "class_variable": "class Settings:\n    depth = 4096\n",
    "default": "def load(path: str, buffer_size: int = 4096) -> None:\n    pass\n",
    "entry": "SIZES = {\n    'buffer': 4096,\n}\n",
    "keyword": "result = configure(\n    buffer_size=4096,\n)\n",
    "returned": "def limit():\n    return 4096\n",
    "imported": "from package.module import Reader\n",
    "alias": "import package.module as reader\n",
    "parameter": "def load(source, depth):\n    return source[depth]\n",
    "base": "class Reader(Stream):\n    pass\n",
    "result_type": "def load(path) -> Reader:\n    return path\n",
    "decorator": "@register('reader')\ndef load():\n    pass\n",
    "docstring": 'def load(path):\n    """Read a file from the disk."""\n',
    "comment": "def load(path):\n    return path\n",
    "error": "def load(path):\n    raise ValueError('no such file')\n",
    "option": "parser.add_argument('--depth', type=int, default=4096)\n",
    "environment": "depth = os.environ.get('MAX_DEPTH', '4096')\n",
    "tuple": "SUFFIXES = ('.txt', '.rst')\n",
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([file.text for file in FILES_OF_A_PACKAGE], 900)


def asked(tokenizer: Tokenizer, forms: list[Form], tokens: int = 3000, key: str = "k") -> AskedText:
    return ask_about(FILES_OF_A_PACKAGE, forms, tokenizer, tokens=tokens, key=key)


def test_there_are_hundreds_and_the_split_is_fixed() -> None:
    assert len(FORMS) == len(STATEMENTS) * len(QUESTIONS) > 800 and len(TRAINED) > 400 and len(HELD_OUT) > 300
    assert len({form.name for form in FORMS}) == len(FORMS)
    assert set(TRAINED).isdisjoint(HELD_OUT) and len(TRAINED) + len(HELD_OUT) == len(FORMS)
    out = {side: [f.name for f in family if is_held_out_family(side, f.name)]
           for side, family in (("statement", STATEMENTS), ("question", QUESTIONS))}  # type: ignore[attr-defined]  # fmt: skip
    # Fixed for good: a model's held-out figures mean something only while these stay out of training.
    assert out["statement"] == ["parameter", "docstring", "comment", "error", "tuple"]
    assert out["question"] == [
        "importing", "mocked", "condition", "callback", "docstring", "bullet", "sentence", "yaml", "command",
        "javascript", "insert",
    ]  # fmt: skip
    statements, questions = ({getattr(f, side).name for f in TRAINED} for side in ("statement", "question"))
    assert not statements & set(out["statement"]) and not questions & set(out["question"])
    assert {"constant", "entry"} <= statements and "assert" in questions, "the generated lookups train these"


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda s: s.name)
def test_a_real_statement_is_found_and_gets_a_fresh_value(statement: Statement) -> None:
    text = "import os\n\n\n" + REAL[statement.name]
    sites = 0
    for seed in range(12):
        planter = Planter(["pkg/mod.py"], [text], random.Random(seed))
        fact = planter.plant(statement)
        (new,) = planter.texts
        assert fact.value.stated in new and fact.value.stated not in text
        assert new.count(fact.value.stated) >= 1 and fact.name in new
        ast.parse(new)
        if fact.name in text:
            sites += 1
            old = statement.pattern.search(text)
            assert old is not None
            assert statement.added or old.group() not in new, "the real value is gone"
    assert sites >= 6


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda s: s.name)
def test_where_the_text_has_none_it_is_written_anew(statement: Statement) -> None:
    names = set()
    for seed in range(6):
        planter = Planter(["pkg/mod.py"], ["import os\n\n\ndef f(x):\n    pass\n"], random.Random(seed))
        fact = planter.plant(statement)
        (new,) = planter.texts
        ast.parse(new)
        assert fact.value.stated in new and re.search(rf"\b{re.escape(fact.name)}\b", new)
        assert fact.path == "pkg/mod.py" and fact.dotted == "pkg.mod" and fact.module == "mod"
        names.add(fact.name)
    assert len(names) == 6


def test_others_that_look_alike_have_other_names_and_values() -> None:
    """Never two statements of one name: what is asked for must have one answer."""
    constant = next(s for s in STATEMENTS if s.name == "constant")
    alike = 0
    for seed in range(40):
        planter = Planter(["m.py"], ["import os\n\n\nMAXIMUM_SIZE = 4096\n\n\nx = 1\n"], random.Random(seed))
        fact = planter.plant(constant)
        stated = re.findall(r"^([A-Z_]+)(?:: Final)? = (.+)$", planter.texts[0], re.M)
        assert [value for name, value in stated if name == fact.name] == [fact.value.stated]
        others = [name for name, _ in stated if name not in (fact.name, "MAXIMUM_SIZE")]
        assert all(set(name.split("_")) & set(fact.name.split("_")) for name in others)
        alike += len(others)
    assert alike >= 15


def test_a_name_that_is_stated_twice_is_not_asked_for() -> None:
    constant = next(s for s in STATEMENTS if s.name == "constant")
    text = "DEPTH_LIMIT = 12\n\n\nif x:\n    DEPTH_LIMIT = 13\n"
    for seed in range(10):
        assert Planter(["m.py"], [text], random.Random(seed)).plant(constant).name != "DEPTH_LIMIT"


def test_every_question_says_which_fact_it_means_and_holds_its_answer() -> None:
    rng = random.Random(1)
    for statement in STATEMENTS:
        fact = Planter(["pkg/mod.py"], ["import os\n"], rng).plant(statement)
        for question in QUESTIONS:
            for _ in range(6):
                before, _ = phrase(question, fact, rng, ["word", "other"])
                assert fact.name.lower() in before.lower() or (fact.owner and fact.owner in before), question.name
                assert "{" not in before.replace("{'", "").replace('{"', "") and "\0" not in before
    assert {question.host for question in QUESTIONS} == set(FILES)


def test_answers_are_spelled_for_their_place() -> None:
    word, number, name = Value("a-b", '"'), Value("12"), Value("Reader", is_name=True)
    assert [word.asked(s) for s in ("python", "double", "bare")] == ['"a-b"', '"a-b"', "a-b"]
    assert {number.asked(s) for s in ("python", "double", "bare")} == {"12"}
    assert [name.asked(s) for s in ("python", "double", "bare")] == ["'Reader'", '"Reader"', "Reader"]
    rng, words = random.Random(0), words_of(["class HTTPReader: limit_of_parser = 3"])
    assert {"reader", "http", "limit", "parser"} <= set(words)
    assert new_literal(rng, words, "'x'").quote == "'" and new_literal(rng, words, "1.5").text.count(".") == 1
    assert new_name(rng, words, "upper").isupper() and "_" not in new_name(rng, words, "camel")
    for case in ("upper", "lower", "camel"):
        old = new_name(rng, words, case)  # type: ignore[arg-type]
        assert near_name(old, random.Random(3), ["zzz"]).lower().count("zzz") == 1


@pytest.mark.parametrize("tokens", [700, 3000, 9000])
def test_texts_state_what_they_ask_before_they_ask(tokens: int, tokenizer: Tokenizer) -> None:
    rng = random.Random(tokens)
    forms = [rng.choice(FORMS) for _ in range(max(2, tokens // 700))]
    text = asked(tokenizer, forms, tokens)
    assert tokens * 0.8 < len(text.ids) <= tokens
    assert sorted(answer.form.name for answer in text.answers) == sorted(form.name for form in forms)
    body = tokenizer.decode(text.ids[: text.answers[0].start])
    for answer in text.answers:
        said = tokenizer.decode(text.ids[answer.start : answer.stop])
        core = max(re.findall(r"[\w.-]+(?: [\w.-]+)?", said), key=len)
        assert core in body, (answer.form.name, said)
    assert text.ids[-1] == tokenizer.end_id
    assert text.ids == asked(tokenizer, forms, tokens).ids != asked(tokenizer, forms, tokens, key="other").ids


def test_too_few_tokens_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="80 tokens are too few for a text with 12 questions, which alone take"):
        asked(tokenizer, list(FORMS[:12]), 80)


def test_the_last_files_stay() -> None:
    files = [File("a", "1\n2\n3\n"), File("b", "4\n5\n")]
    assert cut(files, 100) == files
    assert cut(files, 7) == [File("a", "1\n"), File("b", "4\n5\n")]
    assert cut(files, 3) == [File("b", "4\n")] and cut(files, 1) == [File("b", "")]


@pytest.fixture(scope="module")
def corpus(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenCorpus:
    documents = [Document(name=file.name, text=file.text) for file in FILES_OF_A_PACKAGE]
    return TokenCorpus.build(documents, tokenizer, tmp_path_factory.mktemp("forms") / "train.bin")


def test_rows_are_filled_and_resume_exactly(corpus: TokenCorpus, tokenizer: Tokenizer) -> None:
    source = make_source("forms", 1.0, Material(corpus=corpus, tokenizer=tokenizer), 0)
    assert isinstance(source, AskedForms)
    states, windows = [], []
    for _ in range(6):
        states.append(source.state())
        windows.append(source.window(1500))
        assert windows[-1].shape == (1500,) and windows[-1].dtype == np.int64
    text = "".join(tokenizer.decode(w.tolist()) for w in windows)
    assert "# file: data/" in text and text.count("/tests/test_") + text.count("/docs/") >= 3
    again = AskedForms(corpus, tokenizer, seed=3)
    for state, window in zip(reversed(states), reversed(windows), strict=True):
        again.restore(state)
        assert np.array_equal(again.window(1500), window)
    assert source.window(100).shape == (100,)


def test_rows_show_no_held_out_family(
    corpus: TokenCorpus, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()

    def watched(files: list[File], forms: list[Form], *rest: object, **named: object) -> AskedText:
        seen.update(form.name for form in forms)
        return ask_about(files, forms, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("indexshare.data.sources.formed.ask_about", watched)
    source = AskedForms(corpus, tokenizer, seed=0)
    for _ in range(8):
        source.window(2000)
    assert len(seen) >= 25 and seen <= {form.name for form in TRAINED}
