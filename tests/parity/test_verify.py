"""`verify` with transformers on the other side: no false alarm, and faults planted in transformers are named."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from indexshare import load_model, save_model
from indexshare.cli import main
from indexshare.config.shipped import model_directory
from indexshare.verify import others
from indexshare.verify.conventions import HYPOTHESES
from indexshare.verify.workers import transformers_worker
from tests.parity.harness import build_public, deepseek_case, glm_case, transformers
from tests.parity.planted import BY_CONFIG, BY_FUNCTION, BY_MODULE, FAULTS, MODULE, edited
from tests.unit.verify.conftest import small_model, some_of

PARTS = ("choice", "attention", "feed_forward")
RANDOM = {"vocab_size": 320, "n_group": 1, "topk_group": 1}


@pytest.fixture(scope="session")
def random_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, one group of experts."""
    folder = tmp_path_factory.mktemp("models") / "random"
    save_model(small_model(5, **RANDOM), folder)
    return folder


@pytest.fixture(scope="session")
def grouped_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "grouped"
    save_model(small_model(5, vocab_size=320), folder)
    return folder


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker runs here, where transformers can be changed."""

    def work(worker: str, arguments: list[str]) -> None:
        assert worker == "transformers_worker.py"
        transformers_worker.main(*arguments)

    monkeypatch.setattr(others, "_work", work)


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def run(*arguments: object) -> dict[str, Any]:
        code = main(["verify", *map(str, arguments), "--json"])
        facts: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert code == (0 if facts["verdict"] == "same" else 1)
        return facts

    return run


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """Transformers with a fault in its functions or modules."""
    load = transformers.AutoModelForCausalLM.from_pretrained

    def changed(*args: Any, **kwargs: Any) -> Any:
        model, report = load(*args, **kwargs)
        with torch.no_grad():
            BY_MODULE[name](model)
        return model, report

    with pytest.MonkeyPatch.context() as patch:
        for attribute, value in BY_FUNCTION.get(name, dict)().items():
            patch.setattr(MODULE, attribute, value)
        if name in BY_MODULE:
            patch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", changed)
        yield


def found_in(verify: Callable[..., dict[str, Any]], directory: Path, name: str, *more: object) -> dict[str, Any]:
    """What the command says of a directory under transformers with a fault."""
    if name in BY_CONFIG:
        other = edited(directory, more[0], BY_CONFIG[name]) if isinstance(more[0], Path) else directory
        return verify(directory, "--transformers-from", other, *more[1:])
    with planted(name):
        return verify(directory, "--transformers", *more[1:])


def test_the_worker_in_a_process_of_its_own(verify: Callable[..., dict[str, Any]], grouped_dir: Path) -> None:
    facts = verify(grouped_dir, "--transformers")
    assert (facts["verdict"], facts["found"], facts["first_layer"]) == ("same", [], None)
    assert len(facts["layers"]) == load_model(grouped_dir).config.num_hidden_layers


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("seed", some_of(range(4), {0, 1}))
@pytest.mark.parametrize("case", [glm_case, deepseek_case], ids=["glm", "deepseek"])
def test_no_alarm_on_random_models_that_transformers_wrote(
    verify: Callable[..., dict[str, Any]], tmp_path: Path, case: Callable[[int], Any], seed: int
) -> None:
    build_public(case(seed)).save_pretrained(tmp_path / "model")
    facts = verify(tmp_path / "model", "--transformers")
    assert (facts["verdict"], facts["found"], facts["first_layer"]) == ("same", [], None)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("seed", some_of(range(3), {0}))
@pytest.mark.parametrize("arguments", [(), ("--topk", 8), ("--tokens", 140)], ids=["own", "topk-8", "140"])
def test_no_alarm_on_trained_weights(
    verify: Callable[..., dict[str, Any]], seed: int, arguments: tuple[object, ...]
) -> None:
    facts = verify("pico", "--transformers", "--seed", seed, *arguments)
    assert (facts["verdict"], facts["found"], facts["first_layer"]) == ("same", [], None)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("name", some_of(FAULTS, set(list(FAULTS)[::5])))
def test_faults_of_transformers_on_random_weights(
    verify: Callable[..., dict[str, Any]], random_dir: Path, grouped_dir: Path, tmp_path: Path, name: str
) -> None:
    directory = grouped_dir if name == "expert-groups-ignored" else random_dir
    if not next(h for h in HYPOTHESES if h.name == name).applies(load_model(directory).config):
        pytest.skip("makes no difference to this model")
    facts = found_in(verify, directory, name, tmp_path / "other")
    assert [found["name"] for found in facts["found"]] == [name]
    assert facts["verdict"] == "explained"


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("name", some_of(FAULTS, {"indexer-rope-layout", "dense-fallback", "routed-scale-missing"}))
def test_faults_of_transformers_on_trained_weights(
    verify: Callable[..., dict[str, Any]], tmp_path: Path, name: str
) -> None:
    directory = model_directory("pico")
    config = load_model(directory).config
    if not next(h for h in HYPOTHESES if h.name == name).applies(config):
        pytest.skip("makes no difference to this model")
    facts = found_in(verify, directory, name, tmp_path / "other", "--tokens", config.index_topk + 12)
    assert [found["name"] for found in facts["found"]] == [name]
    assert facts["verdict"] == "explained"


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("sharing-ignored", {"choice": "shared"}),
        ("relu-missing", {"choice": "full"}),
        ("attention-rope-layout", {"attention": "all"}),
        ("routed-scale-missing", {"feed_forward": "experts"}),
        ("shared-experts-missing", {"feed_forward": "experts"}),
    ],
)
def test_layers_differ_in_the_part_that_is_at_fault_and_in_no_other(
    verify: Callable[..., dict[str, Any]], tmp_path: Path, name: str, parts: dict[str, str]
) -> None:
    directory = model_directory("pico")
    config = load_model(directory).config
    facts = found_in(verify, directory, name, tmp_path / "other", "--topk", 16)
    layers = range(config.num_hidden_layers)
    places = {
        "shared": list(config.share_plan.shared_layers),
        "full": list(config.share_plan.full_layers),
        "all": list(layers),
        "experts": [layer for layer in layers if config.is_moe(layer)],
    }
    for part in PARTS:
        apart = [one["layer"] for one in facts["layers"] if one[part] > 1e-4]
        assert apart == (places[parts[part]] if part in parts else []), part


@pytest.mark.usefixtures("in_this_process")
def test_two_faults_of_transformers_are_both_named(verify: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    directory = model_directory("pico")
    other = edited(directory, tmp_path / "other", BY_CONFIG["routed-scale-missing"])
    with planted("indexer-rope-layout"):
        facts = verify(directory, "--transformers-from", other)
    assert sorted(found["name"] for found in facts["found"]) == ["indexer-rope-layout", "routed-scale-missing"]


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_damaged_layer_is_placed_though_no_convention_explains_it(
    verify: Callable[..., dict[str, Any]], random_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damage(model: Any) -> None:
        model.model.layers[2].self_attn.o_proj.weight.mul_(1.5)

    monkeypatch.setitem(BY_MODULE, "damaged", damage)
    with planted("damaged"):
        facts = verify(random_dir, "--transformers")
    assert (facts["verdict"], facts["found"], facts["first_layer"]) == ("unexplained", [], 2)
    apart = [one["layer"] for one in facts["layers"] if max(one[p] for p in PARTS) > 1e-4]
    assert apart == [2]


@pytest.mark.slow
def test_weights_that_transformers_would_invent_are_an_error(
    capsys: pytest.CaptureFixture[str], random_dir: Path, tmp_path: Path
) -> None:
    types = ["full"] * load_model(random_dir).config.num_hidden_layers
    other = edited(random_dir, tmp_path / "other", {"indexer_types": types})
    assert main(["verify", str(random_dir), "--transformers-from", str(other)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "transformers could not run" in shown.err and "would invent them" in shown.err
