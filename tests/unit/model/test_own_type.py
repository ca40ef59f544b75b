"""Under `torch.autocast` the model computes what it computes without; devices that cannot work are one clear line."""

from pathlib import Path

import pytest
import torch

from indexshare import LLM, SamplingParams, load_model, save_model
from indexshare.cache.view import InFlightView
from indexshare.checkpoint.device import usable_device
from indexshare.config.presets import preset
from indexshare.model.glm import GlmMoeDsa

IDS = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(1))  # five times index_topk
CAST = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> GlmMoeDsa:
    return GlmMoeDsa(preset("tiny")).initialise(seed=3).to(request.param).eval()


@pytest.mark.parametrize("kind", CAST)
def test_forward(model: GlmMoeDsa, kind: torch.dtype) -> None:
    with torch.no_grad():
        expected = model(IDS)
        with torch.autocast("cpu", dtype=kind):
            found = model(IDS)
            assert torch.is_autocast_enabled("cpu")  # and still is outside the model
    assert found.dtype == expected.dtype and torch.equal(found, expected)


@pytest.mark.parametrize("kind", CAST)
def test_gradients(model: GlmMoeDsa, kind: torch.dtype) -> None:
    """Forward inside autocast and backward after it, as torch advises; the draft layer included."""

    def gradients(*, cast: bool) -> list[torch.Tensor | None]:
        model.zero_grad()
        with torch.autocast("cpu", dtype=kind, enabled=cast):
            view = InFlightView([40], torch.device("cpu"))
            hidden = model.trunk(IDS[0], view)
            assert model.mtp is not None
            state = model.mtp(model.embed_tokens(IDS[1]), hidden, view)
            state = model.mtp.step(model.embed_tokens(IDS[1]), state, view, 2)
            loss = model.logits(hidden).sum() + model.logits(state.hidden).square().mean()
        loss.backward()
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    pairs = list(zip(gradients(cast=False), gradients(cast=True), strict=True))
    assert sum(expected is not None for expected, _ in pairs) > 50
    for expected, found in pairs:
        assert (expected is None) == (found is None)
        if expected is not None and found is not None:
            assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", CAST)
def test_generate(model: GlmMoeDsa, kind: torch.dtype) -> None:
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    prompts = [IDS[0].tolist(), IDS[1, :7].tolist()]
    llm = LLM(model, cache_tokens=256)
    expected = [output.token_ids for output in llm.generate(prompts, params)]
    with torch.autocast("cpu", dtype=kind):
        assert [output.token_ids for output in llm.generate(prompts, params)] == expected


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("meta", "device is 'meta'; expected cpu, cuda, or cuda and a number"),
        ("mps", "device is 'mps'; expected cpu, cuda"),
        ("tpu", "device is 'tpu'; expected cpu, cuda"),
        ("", "device is ''; expected cpu, cuda"),
        ("cuda:x", "device is 'cuda:x'; expected cpu"),
        (torch.device("meta"), "device is 'meta'"),
        (None, "device is 'None'; expected cpu"),
        (3.5, "device is '3.5'; expected cpu"),
    ],
)
def test_devices_that_cannot_work(device: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        usable_device(device)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        load_model("pico", device=device)  # type: ignore[arg-type]
    if device is not None:
        with pytest.raises(ValueError, match=message):
            LLM("pico", device=device)  # type: ignore[arg-type]


def test_cuda_devices_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, message in ((0, "finds no CUDA device; use device='cpu'"), (2, "torch sees 2 CUDA devices; use device")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda there=there: there)
        with pytest.raises(ValueError, match=message):
            load_model("pico", device="cuda:2")
    assert usable_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="--device is 'cuda:5', but torch sees 2 CUDA devices; use cpu"):
        usable_device("cuda:5", "--device")


def test_a_model_without_values(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = GlmMoeDsa(preset("tiny"))
    for work in (lambda: LLM(model), lambda: save_model(model, tmp_path / "m")):
        with pytest.raises(ValueError, match=r"embed_tokens\.weight has no values .* load the model with load_model"):
            work()
    assert list(tmp_path.iterdir()) == []
