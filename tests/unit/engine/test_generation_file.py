"""What `generation_config.json` says reaches the engine: where texts end, and how tokens are chosen unless asked."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from indexshare.checkpoint.load import load_model
from indexshare.checkpoint.save import save_model
from indexshare.config import preset
from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import Tokenizer, train_bpe
from tests.unit.engine.fake_model import ScriptModel

CONFIG = preset("tiny").replace(vocab_size=320, eos_token_id=7)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["def f(x):\n    return x + 1\n"] * 3, 300)


def scripted(said: dict[str, Any], tokenizer: Tokenizer | None = None, **settings: Any) -> LLM:
    """Says the ids 10 to 29 in turn, if nothing ends them before."""
    fake = ScriptModel(CONFIG, [*range(10, 30)])
    fake.companions = {"generation_config.json": json.dumps(said).encode()}  # type: ignore[assignment]
    return LLM(fake, tokenizer=tokenizer, **settings)  # type: ignore[arg-type]


def spoken(llm: LLM, params: SamplingParams | None = None) -> list[int]:
    return llm.generate([5], params)[0].token_ids


GREEDY = SamplingParams(temperature=0, max_tokens=30)


def test_ids_that_only_this_file_names_end_the_text() -> None:
    assert spoken(scripted({"eos_token_id": [12, 14]}), GREEDY) == [10, 11, 12]
    assert spoken(scripted({"eos_token_id": 14}), GREEDY) == [10, 11, 12, 13, 14]
    everything = [*range(10, 30), 7]
    assert spoken(scripted({}), GREEDY) == everything  # config.json says 7
    # As in transformers, what the file says takes the place of what config.json says.
    assert spoken(scripted({"eos_token_id": 99}), GREEDY)[:21] == everything
    assert len(spoken(scripted({"eos_token_id": 99}), GREEDY)) == 30
    ignoring = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    assert spoken(scripted({"eos_token_id": 12}), ignoring) == [*range(10, 15)]


def test_it_says_how_tokens_are_chosen_unless_asked() -> None:
    llm = scripted({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_new_tokens": 4})
    assert llm.default_params == SamplingParams(temperature=0.6, top_p=0.9, top_k=20, max_tokens=4)
    short = scripted({"do_sample": False, "max_new_tokens": 4})
    assert (len(spoken(short)), len(spoken(short, SamplingParams(max_tokens=6, temperature=0)))) == (4, 6)
    assert scripted({"do_sample": False, "temperature": 0.6}).default_params.greedy
    assert scripted({"repetition_penalty": 1.3}).default_params.repetition_penalty == 1.3
    assert scripted({}).default_params == SamplingParams()


def test_lengths_that_nobody_asked_for_fit_the_context() -> None:
    said = {"max_new_tokens": 10**6, "do_sample": False, "eos_token_id": 99}
    llm = scripted(said, max_context=64, cache_tokens=64)
    assert [len(output.token_ids) for output in llm.generate([[5], [5] * 60])] == [63, 4]
    assert [*llm.stream([5])][-1].output is not None
    with pytest.raises(ValueError, match="exceed the context"):
        llm.generate([5], SamplingParams(max_tokens=100))
    with pytest.raises(ValueError, match="prompt has 64 tokens"):
        llm.generate([5] * 64)


def test_stop_strings(tokenizer: Tokenizer) -> None:
    said = {"stop_strings": tokenizer.decode([14, 15]), "do_sample": False}
    llm = scripted(said, tokenizer)
    assert llm.generate([5])[0].text == tokenizer.decode([10, 11, 12, 13])
    assert scripted(said).default_params.stop == ()  # without a tokenizer there is no text to find them in


def test_what_is_not_implemented_is_said() -> None:
    with pytest.warns(UserWarning, match=r"generation_config\.json asks for num_beams=4, typical_p=0\.9; not impl"):
        scripted({"num_beams": 4, "typical_p": 0.9})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scripted({"num_beams": 1, "repetition_penalty": 1.0, "typical_p": None})
    with pytest.raises(ValueError, match=r"generation_config\.json: top_p is 2"):
        scripted({"top_p": 2})


def test_a_directory_says_so_and_keeps_saying_so(tmp_path: Path) -> None:
    save_model(GlmMoeDsa(CONFIG).initialise(5), tmp_path / "m")
    said = {"do_sample": True, "temperature": 0.25, "eos_token_id": [3, 4], "transformers_version": "5.12.0"}
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(said))
    assert LLM(tmp_path / "m", cache_tokens=256).default_params.temperature == 0.25
    save_model(load_model(tmp_path / "m"), tmp_path / "n")
    llm = LLM(load_model(tmp_path / "n"), cache_tokens=256)
    assert (llm.default_params.temperature, llm.generation.eos_token_ids) == (0.25, (3, 4))
