"""Uses of far names: which are found, and how they are scored under both contexts."""

import math

import pytest
import torch

from indexshare.config import preset
from indexshare.data.splitting import Document
from indexshare.eval.forward import hidden_states
from indexshare.eval.identifiers import (
    CompletedUse,
    Use,
    _score,
    complete_identifiers,
    find_definers,
    find_uses,
    summarise,
)
from indexshare.eval.package import choose_targets
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import Tokenizer, train_bpe
from indexshare.train.losses import token_losses
from tests.unit.eval.fakes import Copier, FakeModel

LIBRARY = (
    "def zebra_path(line):\n    return line\n\n\ndef giraffe(line):\n    return giraffe.zebra_path\n\n\n"
    "x = lib.zebra_path(1)\n"
)
FILLER = "".join(f"assert read_cache({i}) == {i * i}\n" for i in range(40))
TARGET = (
    "from pkg import lib\n\n\ndef antelope(n):\n    return n\n\n\ny = antelope(7)\n"
    + FILLER
    + "# zebra_path and antelope in a comment\n"
    + "z = lib.giraffe(2)\nprint(lib.zebra_path(3))\n"
    + FILLER
    + "y = antelope(8)\ny = antelope(9)\nprint(unknown_name)\n"
)
FILES = [Document(name="pkg/main.py", text=TARGET), Document(name="pkg/lib.py", text=LIBRARY)]
REACH = 256


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([LIBRARY, TARGET], 420)


def uses(tokenizer: Tokenizer, files: list[Document] | None = None) -> list[Use]:
    everything = files or FILES
    (target,) = choose_targets(tokenizer, everything[:1], everything, count=1)
    return find_uses(tokenizer, target, find_definers(everything), reach=REACH, last=len(target.body))


def test_uses_far_and_from_the_package(tokenizer: Tokenizer) -> None:
    found = uses(tokenizer)
    lines = TARGET.split("\n")
    assert [(use.name, use.kind, use.defined_in) for use in found] == [
        ("giraffe", "package", "pkg/lib.py"),
        ("antelope", "far", "pkg/main.py"),
    ], "zebra_path stands in a comment before, antelope(9) right after a mention"
    body = tokenizer.encode(TARGET, parse_special=False)
    for use in found:
        assert use.name in lines[use.line - 1]
        assert tokenizer.decode(body[use.start : use.stop]).lstrip(" .(") == use.name


def test_only_imported_files_define(tokenizer: Tokenizer) -> None:
    elsewhere = [FILES[0], Document(name="pkg/far.py", text=LIBRARY)]
    assert [use.kind for use in uses(tokenizer, elsewhere)] == ["far"]
    everyone = [*FILES, *(Document(name=f"pkg/b{i}.py", text=LIBRARY) for i in range(2))]
    assert [use.kind for use in uses(tokenizer, everyone)] == ["far"], "a name of three files is nobody's"


def test_text_that_python_cannot_read_has_no_uses(tokenizer: Tokenizer) -> None:
    broken = [Document(name="pkg/main.py", text=TARGET + "x = '''\n"), FILES[1]]
    assert uses(tokenizer, broken) == []


def completed(tokenizer: Tokenizer, model: FakeModel) -> list[CompletedUse]:
    return complete_identifiers(model, tokenizer, FILES[:1], FILES, long=4096, short=REACH)


def test_a_model_that_copies_needs_the_long_context(tokenizer: Tokenizer) -> None:
    """`antelope` follows `y =` in both places; `giraffe` is completed only if `lib.` was followed by it before."""
    by_name = {use.name: use for use in completed(tokenizer, Copier(tokenizer))}
    far = by_name["antelope"]
    assert far.right == (True, False) and far.bits[0] < 0.1 < far.bits[1] and far.visible
    long, short = far.prompts
    assert len(short) <= REACH < len(long) and long[-50:] == short[-50:]
    assert tokenizer.decode(short).startswith("# file: pkg/main.py\n")
    assert "def zebra_path" in tokenizer.decode(long) and far.ahead == " antelope(8)"
    assert by_name["giraffe"].visible


def test_a_silent_model_completes_nothing(tokenizer: Tokenizer) -> None:
    found = completed(tokenizer, FakeModel(tokenizer))
    assert all(use.right == (False, False) for use in found)
    assert all(use.bits[0] == pytest.approx(use.bits[1]) for use in found)
    figures = summarise(found)
    assert set(figures) == {"far", "package", "visible", "all"} and figures["all"].uses == 2
    assert figures["all"].accuracy[0].value == 0 and figures["all"].bits_saved.value == pytest.approx(0)


@torch.no_grad()
def test_names_are_scored_in_bfloat16_too(tokenizer: Tokenizer) -> None:
    """Token ids must not pass through the dtype of the hidden states: bfloat16 holds odd numbers up to 256 only."""
    model = GlmMoeDsa(preset("tiny").replace(vocab_size=tokenizer.vocab_size)).initialise(0).bfloat16().eval()
    row = [5, 257, 259, 7, 261, 9]
    hidden, _ = hidden_states(model, [row])
    losses = token_losses(hidden[:-1], model.lm_head.weight, torch.tensor(row[1:]))
    (_, bits), (_, others) = _score(model, tokenizer, [row], [[(1, 3), (4, 5)]])
    assert bits == pytest.approx(float(losses[:2].sum()) / math.log(2))
    assert others == pytest.approx(float(losses[3]) / math.log(2))


def test_refusals(tokenizer: Tokenizer) -> None:
    model = FakeModel(tokenizer)
    with pytest.raises(ValueError, match="expected 64 or more"):
        complete_identifiers(model, tokenizer, FILES[:1], FILES, long=500, short=500)
    with pytest.raises(ValueError, match="reads 2 to 4096"):
        complete_identifiers(model, tokenizer, FILES[:1], FILES)
    with pytest.raises(ValueError, match="uses a name from far above"):
        complete_identifiers(model, tokenizer, FILES[1:], FILES, long=4096, short=2048)
