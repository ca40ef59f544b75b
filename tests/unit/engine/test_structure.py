"""Texts that keep to a structure: grammars, limits on reasoning, biases; with and without drafts."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from indexshare.config import preset
from indexshare.engine.biases import Biases
from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from indexshare.engine.structure import Structure, choice_grammar, json_grammar, regex_grammar, tools_grammar
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.answer_parser import TAGS, Call, parse_answer
from indexshare.text.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "get", "strict": True, "parameters": SCHEMA}}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    names = [*SPECIAL_TOKENS, *(tag for tag in TAGS if tag not in SPECIAL_TOKENS)]
    return train_bpe(["def f(x):\n    return x + 1\n\n\nclass A:\n    pass\n"] * 3, 320, names)


@pytest.fixture(scope="module")
def llm(tokenizer: Tokenizer) -> LLM:
    config = preset("tiny").replace(vocab_size=336, eos_token_id=tokenizer.eos_ids)
    return LLM(GlmMoeDsa(config).initialise(5).eval(), tokenizer=tokenizer, cache_tokens=1024)


@pytest.fixture(scope="module")
def drafting(llm: LLM, tokenizer: Tokenizer) -> LLM:
    return LLM(llm.model, tokenizer=tokenizer, cache_tokens=1024, draft_tokens=4, drafter="both")


def text(llm: LLM, prompt: str = "def f(", **settings: Any) -> str:
    given = {"max_tokens": 200, "temperature": 1.0, "skip_special": False} | settings
    return llm.generate(prompt, SamplingParams(**given))[0].text


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_json_of_a_schema(llm: LLM, drafting: LLM, seed: int, temperature: float) -> None:
    structure = Structure(grammar=json_grammar(SCHEMA))
    for each in (llm, drafting):
        found = json.loads(text(each, seed=seed, temperature=temperature, structure=structure))
        assert set(found) == {"n", "ok"} and 0 <= found["n"] <= 99


def test_drafts_change_no_text_under_a_grammar(llm: LLM, drafting: LLM) -> None:
    structure = Structure(grammar=regex_grammar("(ab|cd){20}[0-9]{30}"))
    settings = {"temperature": 0.0, "structure": structure}
    assert text(llm, **settings) == text(drafting, **settings)
    output = drafting.generate("abababab", SamplingParams(max_tokens=100, **settings))[0]
    assert output.finish_reason == "stop" and output.stats.accepted_tokens > 0


def test_a_choice(llm: LLM) -> None:
    structure = Structure(grammar=choice_grammar(["yes", "no, never"]))
    assert {text(llm, seed=seed, structure=structure) for seed in range(12)} == {"yes", "no, never"}


@pytest.mark.parametrize("most", [0, 1, 7])
def test_reasoning_ends_when_its_tokens_are_used_up(llm: LLM, drafting: LLM, tokenizer: Tokenizer, most: int) -> None:
    structure = Structure(reasoning_tokens=most, in_reasoning=True, grammar=choice_grammar(["done"]))
    bias = {tokenizer.id_of("</think>"): -100}
    for each in (llm, drafting):
        given = SamplingParams(max_tokens=60, seed=1, structure=structure, logit_bias=bias, skip_special=False)
        output = each.generate("x<think>", given)[0]
        assert output.token_ids.index(tokenizer.id_of("</think>")) == most
        assert output.text.endswith("</think>done") and output.finish_reason == "stop"


def test_no_text_ends_inside_its_reasoning(llm: LLM, tokenizer: Tokenizer) -> None:
    bias = {tokenizer.end_id: 100}
    assert text(llm, logit_bias=bias) == ""
    given = SamplingParams(max_tokens=9, structure=Structure(in_reasoning=True), logit_bias=bias)
    assert llm.generate("x", given)[0].finish_reason == "length"


def test_calls_of_tools(llm: LLM, drafting: LLM) -> None:
    for seed in range(3):
        for each in (llm, drafting):
            structure = Structure(grammar=tools_grammar(TOOLS, required=True, parallel=False))
            (call,) = parse_answer(text(each, seed=seed, structure=structure), tools=TOOLS)
            assert isinstance(call, Call) and call.name == "get" and call.complete
            assert isinstance(json.loads(call.arguments)["n"], int)


def test_calls_where_none_is_required(llm: LLM, tokenizer: Tokenizer) -> None:
    structure = Structure(grammar=tools_grammar(TOOLS, required=False))
    bias = {tokenizer.id_of("<tool_call>"): 8.0}
    pieces = parse_answer(text(llm, seed=2, structure=structure, logit_bias=bias, max_tokens=300), tools=TOOLS)
    calls = [piece for piece in pieces if isinstance(piece, Call) and piece.complete]
    assert calls and all(set(json.loads(call.arguments)) == {"n", "ok"} for call in calls)


def test_biases(llm: LLM) -> None:
    assert set(llm.generate("a", SamplingParams(max_tokens=4, logit_bias={65: 100}, ignore_eos=True))[0].token_ids) == {
        65
    }
    plain = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    first = llm.generate("a", plain)[0].token_ids
    other = llm.generate("a", replace(plain, logit_bias={first[0]: -100}))[0].token_ids
    assert first[0] not in other
    with pytest.raises(ValueError, match="logit_bias names the id 336; the vocabulary has only 336 tokens"):
        llm.generate("a", SamplingParams(logit_bias={336: 1}))
    for wrong in ({1: 101}, {-1: 0}, [1], {1: "a"}):
        with pytest.raises(ValueError, match="logit_bias"):
            SamplingParams(logit_bias=wrong)  # type: ignore[arg-type]


def test_structures_that_are_refused(llm: LLM) -> None:
    bad = Structure(grammar=json_grammar({"type": "nothing"}))
    with pytest.raises(ValueError, match="the structure asked for is not valid"):
        llm.generate("a", SamplingParams(structure=bad))
    with pytest.raises(ValueError, match="structure needs a tokenizer"):
        Biases(None, 10, ()).of(SamplingParams(structure=Structure(in_reasoning=True)))
    with pytest.raises(ValueError, match="reasoning_tokens is -1"):
        Structure(reasoning_tokens=-1)
    assert llm.engine.allocator.num_free == llm.engine.allocator.num_blocks


def test_a_draft_under_a_grammar_leaves_it_where_it_was(tokenizer: Tokenizer) -> None:
    structure = Structure(grammar=choice_grammar(["abc", "abd"]), in_reasoning=True)
    bias = Biases(tokenizer, 336, tokenizer.eos_ids).of(SamplingParams(structure=structure))
    assert bias is not None
    end = tokenizer.id_of("</think>")
    a, b, c, x = (tokenizer.encode(letter)[0] for letter in "abcx")

    def allowed(generated: list[int], drafts: list[int]) -> set[int]:
        found = bias.after(generated, drafts)
        assert found is not None
        return set(torch.isfinite(found).nonzero().flatten().tolist())

    everything = set(range(336)) - set(tokenizer.eos_ids)
    assert allowed([], []) == everything == allowed([x], [x, b])
    assert allowed([x], [end]) == {a} | ({tokenizer.entries["ab"]} if "ab" in tokenizer.entries else set())
    assert b in allowed([x], [end, a]) and c in allowed([x], [end, a, b])
    assert b in allowed([x, end], [a]) and allowed([x, end, a, b, c], []) == set(tokenizer.eos_ids)
