"""`LLM` on a random small model and on scripted ones: prompts in, completions out, streams, refusals."""

import random
from pathlib import Path

import pytest
import torch

from indexshare.checkpoint.save import save_model
from indexshare.config import preset
from indexshare.engine.admission import CapacityError
from indexshare.engine.llm import LLM
from indexshare.engine.outputs import CompletionOutput
from indexshare.engine.params import SamplingParams
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import Tokenizer, train_bpe
from tests.tolerance import TOL
from tests.unit.engine.fake_model import BrokenModel, ScriptModel

CONFIG = preset("tiny")  # index_topk 8: the prompts below are up to 20 times longer
LENGTHS = [5, 160, 9, 64, 31]
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
SAMPLED = SamplingParams(max_tokens=12, temperature=0.9, top_k=50, top_p=0.95, min_p=0.01, seed=7, ignore_eos=True)


@pytest.fixture(scope="module")
def model() -> GlmMoeDsa:
    return GlmMoeDsa(CONFIG).initialise(5).eval()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(8)
    return [[rng.randrange(CONFIG.vocab_size) for _ in range(n)] for n in LENGTHS]


@pytest.fixture(scope="module")
def alone(model: GlmMoeDsa, prompts: list[list[int]]) -> dict[SamplingParams, list[CompletionOutput]]:
    llm = LLM(model, cache_tokens=256)
    return {params: [llm.generate(ids, params)[0] for ids in prompts] for params in (GREEDY, SAMPLED)}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["def f(x):\n    return x + 1\n\n\nclass A:\n    pass\n"] * 3, 300)


def tokens(outputs: list[CompletionOutput]) -> list[list[int]]:
    return [out.token_ids for out in outputs]


def scripted(tokenizer: Tokenizer, text: str, **settings: int) -> LLM:
    """Says `text` after any prompt of one token."""
    config = CONFIG.replace(vocab_size=320, eos_token_id=tokenizer.eos_ids)
    fake = ScriptModel(config, tokenizer.encode(text))
    return LLM(fake, tokenizer=tokenizer, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("chunk", "cache_tokens", "max_batch"), [(2048, 4096, 64), (7, 4096, 64), (64, 256, 64), (33, 512, 2)]
)
def test_batch_chunks_and_preemption_change_nothing(
    model: GlmMoeDsa,
    prompts: list[list[int]],
    alone: dict[SamplingParams, list[CompletionOutput]],
    params: SamplingParams,
    chunk: int,
    cache_tokens: int,
    max_batch: int,
) -> None:
    llm = LLM(model, cache_tokens=cache_tokens, prefill_chunk=chunk, max_batch=max_batch)
    assert tokens(llm.generate(prompts, params)) == tokens(alone[params])
    llm.engine.scheduler.check_integrity()
    assert llm.engine.allocator.num_free == llm.engine.allocator.num_blocks


def test_greedy_follows_the_models_own_forward_pass(
    model: GlmMoeDsa, prompts: list[list[int]], alone: dict[SamplingParams, list[CompletionOutput]]
) -> None:
    for ids, out in zip(prompts, alone[GREEDY], strict=True):
        logits = model(torch.tensor([ids + out.token_ids]))[0, len(ids) - 1 : -1]
        assert logits.argmax(-1).tolist() == out.token_ids


def test_logprobs_are_those_of_the_forward_pass(model: GlmMoeDsa, prompts: list[list[int]]) -> None:
    wanted = SamplingParams(max_tokens=5, temperature=1.5, seed=3, ignore_eos=True, logprobs=4)
    for ids in prompts[:3]:
        [out] = LLM(model, cache_tokens=256).generate(ids, wanted)
        assert out.logprobs is not None
        exact = model(torch.tensor([ids + out.token_ids]))[0, len(ids) - 1 : -1].log_softmax(-1)
        found = torch.tensor([entry.logprob for entry in out.logprobs])
        chosen = exact[torch.arange(5), out.token_ids]
        torch.testing.assert_close(found, chosen, **TOL["engine logprobs", "float32"].bounds)
        top = torch.tensor([[value for _, value in entry.top] for entry in out.logprobs])
        torch.testing.assert_close(top, exact.topk(4).values, **TOL["engine logprobs", "float32"].bounds)


def test_nothing_unwritten_is_read(model: GlmMoeDsa, prompts: list[list[int]], poisoned_memory: None) -> None:
    llm = LLM(model, cache_tokens=512, prefill_chunk=50)
    assert all(len(out.token_ids) == 12 for out in llm.generate(prompts, GREEDY))


def test_streaming_equals_generating(model: GlmMoeDsa, prompts: list[list[int]], tokenizer: Tokenizer) -> None:
    wide = GlmMoeDsa(CONFIG.replace(vocab_size=320)).initialise(5)
    llm = LLM(wide, tokenizer=tokenizer, cache_tokens=512)
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=2, ignore_eos=True, logprobs=1)
    for ids in prompts[:3]:
        [out] = llm.generate(ids, params)
        chunks = list(llm.stream(ids, params))
        assert "".join(c.text for c in chunks) == out.text != ""
        assert [c.token_id for c in chunks] == out.token_ids
        assert [c.logprobs for c in chunks] == out.logprobs
        assert [c.output is None for c in chunks] == [True] * 39 + [False]
        last = chunks[-1].output
        assert last is not None
        assert (last.text, last.token_ids, last.finish_reason) == (out.text, out.token_ids, "length")


def test_streams_may_run_interleaved_with_each_other_and_a_batch(
    model: GlmMoeDsa, prompts: list[list[int]], alone: dict[SamplingParams, list[CompletionOutput]]
) -> None:
    llm = LLM(model, cache_tokens=1024)
    first, second = llm.stream(prompts[0], GREEDY), llm.stream(prompts[1], SAMPLED)
    got: list[list[int | None]] = [[next(first).token_id], [next(second).token_id]]
    got[0].append(next(first).token_id)
    assert tokens(llm.generate(prompts[2:], GREEDY)) == tokens(alone[GREEDY][2:])
    got[1] += [c.token_id for c in second]
    got[0] += [c.token_id for c in first]
    assert got == [alone[GREEDY][0].token_ids, alone[SAMPLED][1].token_ids]


def test_closing_a_stream_frees_its_blocks(model: GlmMoeDsa, prompts: list[list[int]]) -> None:
    llm = LLM(model, cache_tokens=512)
    stream = llm.stream(prompts[1], GREEDY)
    next(stream)
    assert llm.engine.allocator.num_free < llm.engine.allocator.num_blocks
    stream.close()  # type: ignore[attr-defined]
    assert llm.engine.allocator.num_free == llm.engine.allocator.num_blocks
    assert not llm.engine.has_work
    llm.stream(prompts[1], GREEDY)  # never started: nothing to free
    assert not llm.engine.has_work


def test_an_interrupt_frees_everything() -> None:
    fake = BrokenModel()
    llm = LLM(fake, cache_tokens=512)  # type: ignore[arg-type]
    fake.failure = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[1, 2, 3], [4]], GREEDY)
    with pytest.raises(KeyboardInterrupt):
        next(llm.stream([1, 2], GREEDY))
    llm.engine.scheduler.check_integrity()
    assert llm.engine.allocator.num_free == llm.engine.allocator.num_blocks
    assert not llm.engine.has_work
    fake.failure = None
    assert len(llm.generate([1, 2, 3], GREEDY)[0].token_ids) == 12


def test_nan_is_an_error_that_names_the_prompt() -> None:
    llm = LLM(BrokenModel(), cache_tokens=512)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^prompt 1: the logits after 2 tokens are NaN"):
        llm.generate([[1, 2, 3], [4, 99]], SamplingParams(max_tokens=30, stop_token_ids=(99,)))
    with pytest.raises(ValueError, match=r"^prompt: the logits"):
        list(llm.stream([99], GREEDY))
    assert llm.engine.allocator.num_free == llm.engine.allocator.num_blocks


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("\n\n\nclass",), "def f(x):\n    return x + 1"),
        (("(", "x"), "def f"),
        (("1\n\n", "\n\n\n"), "def f(x):\n    return x + "),
        (("def",), ""),
        (("absent",), "def f(x):\n    return x + 1\n\n\nclass A:\n    pas"),
        (("pas",), "def f(x):\n    return x + 1\n\n\nclass A:\n    "),
        (("passX",), "def f(x):\n    return x + 1\n\n\nclass A:\n    pas"),
    ],
)
def test_stop_strings_cut_the_text(tokenizer: Tokenizer, stop: tuple[str, ...], expected: str) -> None:
    llm = scripted(tokenizer, "def f(x):\n    return x + 1\n\n\nclass A:\n    pas")
    params = SamplingParams(max_tokens=100, temperature=0, stop=stop)
    [out] = llm.generate([[1]], params)
    assert out.text == expected
    assert out.finish_reason == "stop"
    shown = ""
    for chunk in llm.stream([1], params):
        shown += chunk.text
        assert expected.startswith(shown)
    assert shown == expected


def test_the_end_of_text_has_no_text_and_can_be_ignored(tokenizer: Tokenizer) -> None:
    llm = scripted(tokenizer, "class A")
    script = tokenizer.encode("class A")
    [out] = llm.generate([[1]], SamplingParams(max_tokens=100, temperature=0))
    assert (out.text, out.finish_reason) == ("class A", "stop")
    assert out.token_ids == [*script, *tokenizer.eos_ids]
    most = len(script) + 3
    [out] = llm.generate([[1]], SamplingParams(max_tokens=most, temperature=0, ignore_eos=True))
    assert (out.text, out.finish_reason, len(out.token_ids)) == ("class A", "length", most)


def test_text_prompts_are_encoded(tokenizer: Tokenizer) -> None:
    config = CONFIG.replace(vocab_size=320, eos_token_id=tokenizer.eos_ids)
    prompt = "def f(x):"
    fake = ScriptModel(config, tokenizer.encode(" return"), prompt_len=len(tokenizer.encode(prompt)))
    llm = LLM(fake, tokenizer=tokenizer)  # type: ignore[arg-type]
    out = llm.generate([prompt, tokenizer.encode(prompt)], SamplingParams(temperature=0))
    assert [o.text for o in out] == [" return", " return"]
    assert llm.generate(prompt, SamplingParams(temperature=0))[0].text == " return"


def test_prefill_progress_counts_every_prompt_token(model: GlmMoeDsa, prompts: list[list[int]]) -> None:
    calls: list[tuple[int, int]] = []
    llm = LLM(model, cache_tokens=512, prefill_chunk=50, prefix_cache=False)
    llm.generate(prompts[:2], GREEDY, on_prefill=lambda done, total: calls.append((done, total)))
    assert [total for _, total in calls] == [165] * len(calls)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1][0] == 165
    assert len(calls) >= 4
    calls.clear()
    list(llm.stream(prompts[1], GREEDY, on_prefill=lambda done, total: calls.append((done, total))))
    assert calls == [(50, 160), (100, 160), (133, 160), (160, 160)], "no piece of 10 tokens is left for the end"


def test_a_bar_is_drawn_on_standard_error(
    model: GlmMoeDsa, prompts: list[list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    LLM(model, cache_tokens=512).generate(prompts[:2], GREEDY, progress=True)
    written = capsys.readouterr()
    assert written.out == ""
    assert "reading" in written.err
    assert "165/165" in written.err
    assert "24/24" in written.err


def test_parameters_may_differ_by_prompt(model: GlmMoeDsa, prompts: list[list[int]]) -> None:
    llm = LLM(model, cache_tokens=512)
    outputs = llm.generate(prompts[:2], [GREEDY, SamplingParams(max_tokens=3, ignore_eos=True)])
    assert [len(out.token_ids) for out in outputs] == [12, 3]
    with pytest.raises(ValueError, match="1 sampling parameters for 2 prompts"):
        llm.generate(prompts[:2], [GREEDY])
    with pytest.raises(ValueError, match="expected SamplingParams"):
        llm.generate(prompts[0], [{"max_tokens": 3}])  # type: ignore[list-item]


def test_tensors_and_arrays_are_prompts_and_batches(model: GlmMoeDsa) -> None:
    llm = LLM(model, cache_tokens=256)
    expected = tokens(llm.generate([[1, 2, 3], [4, 5, 6]], GREEDY))
    two = torch.tensor([[1, 2, 3], [4, 5, 6]])
    for batch in (two, list(two), two.numpy(), [two[0].numpy(), range(4, 7)]):
        assert tokens(llm.generate(batch, GREEDY)) == expected  # type: ignore[arg-type]
    for one in (two[0], list(two[0]), two[0].numpy(), list(two[0].numpy())):
        assert tokens(llm.generate(one, GREEDY)) == expected[:1]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "prompts? is empty"),
        ([[1], []], "prompt 1 is empty"),
        ([[1], [2, 256]], "prompt 1, position 1: token id 256 is out of range; expected 0 to 255"),
        ([[1], [2.5]], "prompt 1, position 0: 2.5 is not an integer"),
        ([1, True], "prompt, position 1: True is not an integer"),
        ("text", "prompt is a text, but the model has no tokenizer"),
        (5, "prompt is 5; expected a text or a list"),
        ({"a": 1}, "prompts is a dict; expected a text, token ids, or a list"),
        (b"ab", "prompt is b'ab'; expected a text"),
        ([[1] * 501], "501 prompt tokens \\+ max_tokens 12 = 513 exceed the context of 512"),
        ([[1] * 512], "prompt has 512 tokens, but the context holds 512"),
        ([[1], [1] * 300], "prompt 1: 300 prompt tokens .* take 311 cache slots, but the cache has 256"),
    ],
)
def test_bad_prompts_are_refused_before_any_work(model: GlmMoeDsa, prompt: object, words: str) -> None:
    llm = LLM(model, max_context=512, cache_tokens=256)
    with pytest.raises(ValueError, match=words):
        llm.generate(prompt, GREEDY)  # type: ignore[arg-type]
    assert not llm.engine.has_work
    if not (isinstance(prompt, list) and len(prompt) > 1):
        with pytest.raises(ValueError, match="prompt"):
            llm.stream(prompt[0] if isinstance(prompt, list) and prompt else prompt, GREEDY)  # type: ignore[arg-type]


def test_requests_that_cannot_run_are_refused(model: GlmMoeDsa) -> None:
    llm = LLM(model, cache_tokens=64)
    with pytest.raises(CapacityError):
        llm.generate([[1] * 60], GREEDY)
    with pytest.raises(ValueError, match="stop strings need a tokenizer"):
        llm.generate([1], SamplingParams(stop="x"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_context": 0}, "max_context is 0"),
        ({"max_context": 5000}, "max_context is 5000, but the model was made for 4096"),
        ({"cache_tokens": -1}, "cache_tokens is -1"),
        ({"prefill_chunk": 0}, "prefill_chunk is 0"),
        ({"max_batch": 1.5}, "max_batch is 1.5"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": 100_000}, "threads is 100000; expected at most 1024, best the number of cores"),
        ({"full_attention_below": -1}, "full_attention_below is -1"),
        ({"full_attention_below": 0.5}, "full_attention_below is 0.5"),
        ({"full_attention_below": "9"}, "full_attention_below is '9'"),
        ({"dtype": torch.float32}, "dtype and device apply to a model that is loaded"),
    ],
)
def test_bad_settings_are_refused(model: GlmMoeDsa, settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LLM(model, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (None, "model is None; expected a shipped model's name, a directory, or a model"),
        (3, "model is 3; expected"),
        ("", "the model's name is empty"),
        ("glm-5.2", "it is a preset, a configuration without weights"),
    ],
)
def test_what_is_no_model_is_refused(model: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LLM(model)  # type: ignore[arg-type]


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no CUDA device; use device='cpu'"):
        LLM("nano", device="cuda")


def test_a_tokenizer_of_another_model_is_refused(model: GlmMoeDsa, tokenizer: Tokenizer) -> None:
    with pytest.raises(
        ValueError, match="entries, more than the model's vocabulary of 256; it belongs to another model"
    ):
        LLM(model, tokenizer=tokenizer)


def test_full_attention_below_reaches_the_model(model: GlmMoeDsa, prompts: list[list[int]]) -> None:
    llm = LLM(model, cache_tokens=512, full_attention_below=10**9)
    [out] = llm.generate(prompts[1], GREEDY)
    assert out.stats.share_attended == 1.0
    assert out.stats.index_passes_run + out.stats.index_passes_saved == 0
    ids = prompts[1] + out.token_ids
    logits = model(torch.tensor([ids]), full_attention_below=10**9)[0, 159:-1]
    assert logits.argmax(-1).tolist() == out.token_ids


def test_a_directory_brings_its_tokenizer_along(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = CONFIG.replace(vocab_size=320, eos_token_id=tokenizer.eos_ids)
    model = GlmMoeDsa(config).initialise(5)
    save_model(model, tmp_path)
    tokenizer.save(tmp_path)
    in_memory = LLM(model, tokenizer=tmp_path, cache_tokens=256)
    loaded = LLM(str(tmp_path), dtype="float32", cache_tokens=256, max_context=128)
    assert (in_memory.max_context, loaded.max_context) == (CONFIG.max_position_embeddings, 128)
    [expected] = in_memory.generate("def f(x):", GREEDY)
    [out] = loaded.generate("def f(x):", GREEDY)
    assert (out.text, out.token_ids) == (expected.text, expected.token_ids)
    (tmp_path / "tokenizer.json").unlink()
    assert LLM(tmp_path, cache_tokens=256).tokenizer is None


def test_kernels_are_there_before_the_first_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has to be compiled is compiled when the model is loaded, not on the prompt's time."""
    asked = []
    monkeypatch.setattr("indexshare.engine.loading.native", lambda: asked.append(True))
    LLM(GlmMoeDsa(preset("tiny")), cache_tokens=64)
    assert asked
