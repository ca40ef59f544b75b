"""Prompts that begin like earlier ones: the same logits to the last bit as without, whatever happened in between."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from indexshare.cache.prefix import pack_tokens
from indexshare.config import preset
from indexshare.engine.llm import LLM
from indexshare.engine.outputs import CompletionOutput
from indexshare.engine.params import SamplingParams
from indexshare.engine.runner import Computed
from indexshare.engine.scheduler import Row
from indexshare.model.glm import GlmMoeDsa

CONFIG = preset("tiny")  # index_topk 8, far below the prompts
LENGTH = 330
CHUNK = 128
ONE = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
TEN = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def model() -> GlmMoeDsa:
    return GlmMoeDsa(CONFIG).initialise(5).eval()


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    rng = random.Random(8)
    return [rng.randrange(CONFIG.vocab_size) for _ in range(LENGTH)]


def engine(model: GlmMoeDsa, **settings: object) -> LLM:
    return LLM(model, **{"cache_tokens": 4096, "prefill_chunk": CHUNK, **settings})  # type: ignore[arg-type]


def spoken(llm: LLM, prompts: Sequence[list[int]], params: SamplingParams) -> list[tuple[CompletionOutput, Tensor]]:
    """Outputs, and the logits `[tokens, V]` that each was drawn from."""
    forward, seen = llm.engine.runner.forward, dict[int, list[Tensor]]()

    def recording(rows: Sequence[Row]) -> Computed:
        computed = forward(rows)
        for number, row in enumerate(row for row in rows if row.completes):
            seen.setdefault(row.request.number, []).append(computed.logits[number].clone())
        return computed

    llm.engine.runner.forward = recording  # type: ignore[method-assign]
    try:
        outputs = llm.generate(list(prompts), params)
    finally:
        llm.engine.runner.forward = forward  # type: ignore[method-assign]
    llm.engine.scheduler.check_integrity()
    assert llm.engine.allocator.num_free == llm.engine.allocator.num_blocks
    return list(zip(outputs, (torch.stack(seen[number]) for number in sorted(seen)), strict=True))


def same(found: Sequence[tuple[CompletionOutput, Tensor]], wanted: Sequence[tuple[CompletionOutput, Tensor]]) -> None:
    for (output, logits), (expected, expected_logits) in zip(found, wanted, strict=True):
        assert output.token_ids == expected.token_ids
        assert torch.equal(logits, expected_logits), float((logits - expected_logits).abs().max())


def spared(llm: LLM, tokens: int) -> int:
    """How many of the first `tokens` tokens of the prompt may be taken over."""
    prefixes = llm.engine.prefixes
    assert prefixes is not None
    return prefixes.usable(min(tokens, LENGTH - prefixes.left))


def other(tokens: Sequence[int]) -> list[int]:
    """Tokens of the same number that differ everywhere."""
    return [(token + 1) % CONFIG.vocab_size for token in tokens]


def test_a_hit_is_the_cold_run_to_the_last_bit_at_every_split(model: GlmMoeDsa, prompt: list[int]) -> None:
    llm = engine(model)
    [cold] = spoken(engine(model, prefix_cache=False), [prompt], ONE)
    taken = set()
    for split in sorted({*range(1, LENGTH, 29), *(n + d for n in (64, 128, 192, 256) for d in (-1, 0, 1)), 313, 329}):
        assert llm.engine.prefixes is not None
        llm.engine.prefixes.clear()
        llm.generate(prompt[:split] + other(prompt[split:]), ONE)
        found = spoken(llm, [prompt], ONE)
        same(found, [cold])
        assert found[0][0].stats.cached_tokens == spared(llm, split)
        taken.add(found[0][0].stats.cached_tokens)
    assert taken == {0, *range(llm.engine.prefixes.step, LENGTH - 64, llm.engine.prefixes.step)}  # type: ignore[union-attr]


@pytest.mark.parametrize("length", [1, 64, 65, 79, 80, 81, 82, 128, 129, 144, 145, 330])
def test_the_same_prompt_again(model: GlmMoeDsa, prompt: list[int], length: int) -> None:
    llm, ids = engine(model), prompt[:length]
    [cold] = spoken(engine(model, prefix_cache=False), [ids], TEN)
    assert llm.engine.prefixes is not None
    again = llm.engine.prefixes.usable(max(0, length - llm.engine.prefixes.left))
    for cached in (0, again, again):
        [found] = spoken(llm, [ids], TEN)
        same([found], [cold])
        assert found[0].stats.cached_tokens == cached
        assert found[0].stats.prompt_tokens == length


def test_batches_share_one_beginning_that_is_read_once(model: GlmMoeDsa, prompt: list[int]) -> None:
    prompts = [prompt[:256] + other(prompt[256 : 256 + n]) for n in (40, 60, 17)] + [other(prompt)[:100], prompt]
    cold = [spoken(engine(model, prefix_cache=False), [ids], ONE)[0] for ids in prompts]
    llm = engine(model)
    found = spoken(llm, prompts, ONE)
    same(found, cold)
    assert [output.stats.cached_tokens for output, _ in found] == [0, 256, 256, 0, 256]
    found = spoken(llm, prompts[::-1], ONE)
    same(found, cold[::-1])
    assert [output.stats.cached_tokens for output, _ in found] == [256, 64, 256, 256, 256]


def test_samples_of_one_prompt_read_it_once(model: GlmMoeDsa, prompt: list[int]) -> None:
    llm = engine(model, prefill_chunk=64)
    outputs = llm.generate([prompt] * 4, TEN)
    assert [output.stats.cached_tokens for output in outputs] == [0, 256, 256, 256]
    assert len({tuple(output.token_ids) for output in outputs}) == 1


def test_eviction_and_preemption_change_nothing(model: GlmMoeDsa, prompt: list[int]) -> None:
    prompts = [other(prompt)[n : n + 150] + prompt[:60] for n in range(0, 120, 30)] + [prompt, prompt[:200]]
    long = SamplingParams(max_tokens=80, temperature=0.0, ignore_eos=True)
    cold = [engine(model, prefix_cache=False).generate(ids, long)[0] for ids in prompts]
    llm, rng = engine(model, cache_tokens=704), random.Random(1)
    preempted = spared = 0
    for _ in range(3):
        order = rng.sample(range(len(prompts)), len(prompts))
        outputs = llm.generate([prompts[n] for n in order], long)
        assert [output.token_ids for output in outputs] == [cold[n].token_ids for n in order]
        llm.engine.scheduler.check_integrity()
        preempted += sum(output.stats.preemptions for output in outputs)
        spared += sum(output.stats.cached_tokens for output in outputs)
    assert preempted > 0 and spared > 0
    [first] = spoken(engine(model, prefix_cache=False), [prompt], ONE)
    same(spoken(llm, [prompt], ONE), [first])


def test_a_conversation_computes_only_what_is_new(model: GlmMoeDsa) -> None:
    """Twenty turns: of each, what the user adds, the answer before it, and the rest of one block."""
    llm, rng, said = engine(model, cache_tokens=16384), random.Random(2), list[int]()
    for turn in range(20):
        asked = [rng.randrange(CONFIG.vocab_size) for _ in range(rng.randrange(20, 90))]
        before, said = len(said), said + asked
        [output] = llm.generate(said, TEN)
        computed = len(said) - output.stats.cached_tokens
        assert computed <= len(asked) + (64 + 17 + len(output.token_ids) if turn else 0), turn
        assert before == 0 or output.stats.cached_tokens >= (before - 10 - 17) // 64 * 64
        said = said + output.token_ids


def test_changed_weights_and_other_kernels_share_nothing(prompt: list[int]) -> None:
    model = GlmMoeDsa(CONFIG).initialise(5).eval()
    llm = engine(model)
    llm.generate(prompt, ONE)

    def halve() -> None:
        with torch.no_grad():
            model.layers[0].input_layernorm.weight.mul_(0.5)  # type: ignore[union-attr, operator]

    def replace() -> None:
        model.load_state_dict(GlmMoeDsa(CONFIG).initialise(6).state_dict(), assign=True)

    changes: list[Callable[[], object]] = [halve, replace, model.weights_changed]
    for change in changes:
        assert llm.generate(prompt, ONE)[0].stats.cached_tokens == 256
        change()
        found = spoken(llm, [prompt], ONE)
        assert found[0][0].stats.cached_tokens == 0
        same(found, spoken(engine(model, prefix_cache=False), [prompt], ONE))


def test_weights_that_change_while_a_prompt_is_read_leave_nothing_behind(prompt: list[int]) -> None:
    model = GlmMoeDsa(CONFIG).initialise(5).eval()
    llm = engine(model)
    generation = llm.engine.submit(prompt, ONE)
    llm.engine.step()
    model.weights_changed()
    late = llm.engine.submit(prompt[::-1], ONE)
    while not (generation.finished and late.finished):
        llm.engine.step()
    assert llm.generate(prompt, ONE)[0].stats.cached_tokens == 0
    assert llm.generate(prompt[::-1], ONE)[0].stats.cached_tokens == 256


def test_scores_are_computed_for_every_place(model: GlmMoeDsa, prompt: list[int]) -> None:
    llm = engine(model, cache_tokens=512)
    expected = engine(model, prefix_cache=False).score(prompt)
    llm.generate(prompt, ONE)
    found = llm.score(prompt)
    assert found.tokens == expected.tokens and found.scored == LENGTH - 1
    assert llm.engine.allocator.num_free == llm.engine.allocator.num_blocks
    llm.engine.scheduler.check_integrity()


def test_full_attention_up_to_a_length_is_shared_beyond_it(model: GlmMoeDsa, prompt: list[int]) -> None:
    llm = engine(model, full_attention_below=100)
    [cold] = spoken(engine(model, prefix_cache=False, full_attention_below=100), [prompt], ONE)
    llm.generate(prompt[:90] + other(prompt[90:]), ONE)
    assert spoken(llm, [prompt], ONE)[0][0].stats.cached_tokens == 0, "what is attended in full is read in one piece"
    found = spoken(llm, [prompt], ONE)
    same(found, [cold])
    assert found[0][0].stats.cached_tokens == 256


def test_the_draft_layers_rows_are_shared_too(model: GlmMoeDsa, prompt: list[int], tmp_path: Path) -> None:
    """A block's last row of that layer is made from the token behind the block, which must be the same."""
    drafting = {"draft_tokens": 3, "drafter": "mtp"}
    cold = engine(model, prefix_cache=False, **drafting)
    [expected] = cold.generate(prompt, TEN)
    for split, cached in ((LENGTH, 256), (257, 256), (256, 192), (200, 192)):
        llm = engine(model, cache_dir=tmp_path / str(split), **drafting)
        llm.generate(prompt[:split] + other(prompt[split:]), TEN)
        finish(llm)
        for again, known in ((llm, cached), (engine(model, cache_dir=tmp_path / str(split), **drafting), 256)):
            [output] = again.generate(prompt, TEN)
            assert output.token_ids == expected.token_ids
            assert output.stats.cached_tokens == known
            assert output.stats.drafted_tokens == expected.stats.drafted_tokens
            assert output.stats.accepted_tokens == expected.stats.accepted_tokens
            finish(again)
            assert again.engine.prefixes is not None
            chain = again.engine.prefixes.chain(pack_tokens(prompt), 256)
            assert len(chain) == 4
            for number, node in enumerate(chain):
                assert again.cache.read_block(node.block) == cold.cache.read_block(number)


def test_an_interrupted_step_leaves_the_books_in_order(model: GlmMoeDsa, prompt: list[int]) -> None:
    llm = engine(model)
    [cold] = spoken(engine(model, prefix_cache=False), [prompt], TEN)
    for when in range(1, 8):
        forward, calls = llm.engine.runner.forward, iter(range(100))

        def failing(rows: Sequence[Row]) -> Computed:
            if next(calls) == when:  # noqa: B023
                raise KeyboardInterrupt
            return forward(rows)  # noqa: B023

        llm.engine.runner.forward = failing  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            llm.generate([prompt, other(prompt)], TEN)
        llm.engine.runner.forward = forward  # type: ignore[method-assign]
        llm.engine.scheduler.check_integrity()
        same(spoken(llm, [prompt], TEN), [cold])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "prefixes"


def finish(llm: LLM) -> None:
    assert llm.engine.saved is not None
    llm.engine.saved.flush()


def test_the_next_process_goes_on_to_the_last_bit(model: GlmMoeDsa, prompt: list[int], folder: Path) -> None:
    [cold] = spoken(engine(model, prefix_cache=False), [prompt], TEN)
    first = engine(model, cache_dir=folder)
    same(spoken(first, [prompt], TEN), [cold])
    finish(first)
    for split in (LENGTH, 200, 130, 64, 63):
        llm = engine(model, cache_dir=folder)
        ids = prompt[:split] + other(prompt[split:])
        found = spoken(llm, [ids], TEN)
        same(found, spoken(engine(model, prefix_cache=False), [ids], TEN))
        assert found[0][0].stats.cached_tokens == spared(llm, split)
        finish(llm)
    assert len(list(folder.rglob("*.block"))) == 5 + 2 + 3 + 4 + 5


def test_memory_and_files_together(model: GlmMoeDsa, prompt: list[int], folder: Path) -> None:
    """What memory has lost is found in files again, and what continues it."""
    [cold] = spoken(engine(model, prefix_cache=False), [prompt], ONE)
    llm = engine(model, cache_dir=folder, cache_tokens=384)
    llm.generate(prompt[:150], ONE)
    llm.generate(prompt, ONE)
    finish(llm)
    for ids in (other(prompt), [3] * LENGTH):
        llm.generate(ids, ONE)
        finish(llm)
    found = spoken(llm, [prompt], ONE)
    same(found, [cold])
    assert found[0][0].stats.cached_tokens == 256


def test_damaged_files_are_a_miss_and_written_again(
    model: GlmMoeDsa, prompt: list[int], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [cold] = spoken(engine(model, prefix_cache=False), [prompt], ONE)
    first = engine(model, cache_dir=folder)
    first.generate(prompt, ONE)
    finish(first)
    files = sorted(folder.rglob("*.block"))
    for damaged in files:
        data = damaged.read_bytes()
        damaged.write_bytes(data[:-500] + bytes(500))
        caplog.clear()
        llm = engine(model, cache_dir=folder)
        found = spoken(llm, [prompt], ONE)
        same(found, [cold])
        finish(llm)
        lines = [record.getMessage() for record in caplog.records]
        beyond = found[0][0].stats.cached_tokens == 256  # the block with the prompt's end is not asked for
        assert (
            lines == []
            if beyond
            else [f"{damaged} is damaged; the prompt is computed from there on, and the file replaced"]
        )
        assert beyond or damaged.read_bytes() == data
        damaged.write_bytes(data)


def test_another_model_finds_nothing(model: GlmMoeDsa, prompt: list[int], folder: Path) -> None:
    first = engine(model, cache_dir=folder)
    first.generate(prompt, ONE)
    finish(first)
    strange = GlmMoeDsa(CONFIG).initialise(5).eval()
    assert engine(strange, cache_dir=folder).generate(prompt, ONE)[0].stats.cached_tokens == 256, "the same weights"
    with torch.no_grad():
        strange.lm_head.weight[0, 0] += 1
    for llm in (
        engine(strange, cache_dir=folder),
        engine(model, cache_dir=folder, full_attention_below=20),
        engine(model, cache_dir=folder, prefill_chunk=64),
    ):
        assert llm.generate(prompt, ONE)[0].stats.cached_tokens == 0
        finish(llm)
    assert len(list(folder.iterdir())) == 4


def test_a_full_disk_costs_only_the_files(
    model: GlmMoeDsa, prompt: list[int], folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    [cold] = spoken(engine(model, prefix_cache=False), [prompt], TEN)
    llm = engine(model, cache_dir=folder)
    monkeypatch.setattr("os.replace", full)
    same(spoken(llm, [prompt], TEN), [cold])
    finish(llm)
    same(spoken(llm, [prompt], TEN), [cold])
    finish(llm)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "no space left on device; prompts are not kept there"
    ]
    assert not list(folder.rglob("*.block"))


def test_refusals(model: GlmMoeDsa, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="which is a file; expected a folder"):
        engine(model, cache_dir=tmp_path / "file")
    with pytest.raises(ValueError, match="but prefix_cache is False; leave one of them out"):
        engine(model, cache_dir=tmp_path, prefix_cache=False)
    with pytest.raises(ValueError, match="cache_dir_bytes"):
        engine(model, cache_dir=tmp_path, cache_dir_bytes=-1)


@pytest.mark.parametrize("codecs", [{"cache_dtype": "int8"}, {"cache_dtype": "fp8", "index_cache_dtype": "bfloat16"}])
def test_rows_in_few_bits_are_shared_as_they_are(
    model: GlmMoeDsa, prompt: list[int], folder: Path, codecs: dict[str, str]
) -> None:
    [cold] = spoken(engine(model, prefix_cache=False, **codecs), [prompt], TEN)
    for cached in (0, 256):
        llm = engine(model, cache_dir=folder, **codecs)
        found = spoken(llm, [prompt], TEN)
        same(found, [cold])
        assert found[0][0].stats.cached_tokens == cached
        finish(llm)
    plain = engine(model, cache_dir=folder)
    assert plain.generate(prompt, ONE)[0].stats.cached_tokens == 0, "rows of another kind"
