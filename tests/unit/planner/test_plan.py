"""Published sizes, placement on machines, ceilings and what they say of published speeds."""

import math

import pytest
import torch

from indexshare.adapt.quantized import packing
from indexshare.cache.paged import PagedCache
from indexshare.checkpoint.load import load_model
from indexshare.config.layers import Role, model_tensors
from indexshare.config.presets import preset
from indexshare.ops.quant import block_grid
from indexshare.planner.claims import claims, sharing_ratios, without_sharing
from indexshare.planner.formats import CACHE_FORMATS, FORMATS, weight_format
from indexshare.planner.hardware import find_machines
from indexshare.planner.placement import largest_context, needs_of, place
from indexshare.planner.plan import Request, changes, facts_of, matrix, plan_machine
from indexshare.planner.published import PublishedSpeed, published_speeds
from indexshare.planner.reached import reached_by
from indexshare.planner.roofline import STAGES, Placed, decode_ceiling, prefill_ceiling

GLM, NANO = preset("glm-5.2"), preset("nano")
MILLION = 1 << 20
FP8 = FORMATS["fp8"]


def request(context: int = MILLION, weights: str = "fp8", cache: str = "fp8", batch: int = 1) -> Request:
    return Request(context=context, batch=batch, weights=FORMATS[weights], cache=cache)


def test_glm_52_as_published() -> None:
    facts = facts_of(GLM, request())
    assert facts["parameters_total"] == 753_329_921_024
    assert 39e9 < facts["parameters_active"] < 41e9
    assert facts["cache_bytes_per_token"] == {"float32": 190_464, "bf16": 95_232, "fp8": 53_940, "int8": 53_940}
    assert 2.7 <= facts["flops_per_token"]["ratio"] <= 2.95
    assert round(facts_of(GLM, request(131072))["flops_per_token"]["ratio"], 2) == 1.5
    assert (
        facts["flops_per_token"]["unshared"] / facts["flops_per_token"]["shared"] == facts["flops_per_token"]["ratio"]
    )


def test_every_convention_of_the_published_ratio() -> None:
    ratios = sharing_ratios(GLM, MILLION)
    assert {name: round(ratio, 2) for name, ratio in ratios.items()} == {
        "weights, scores and absorbed attention": 2.73,
        "weights, scores and expanded attention": 2.81,
        "weights and scores": 2.88,
        "weights without the head, and scores": 2.89,
        "scores alone": 3.71,
        "a whole prompt of that length": 2.29,
    }
    assert set(sharing_ratios(GLM, 100).values()) >= {1.0}  # nothing is scored below index_topk


@pytest.mark.parametrize(("cache", "dtype"), [("float32", "float32"), ("bf16", "bfloat16")])
@pytest.mark.parametrize("name", ["nano", "pico", "tiny"])
def test_cache_bytes_are_those_that_are_allocated(name: str, cache: str, dtype: str) -> None:
    import torch

    config = preset(name)
    pool = PagedCache(config, num_blocks=3, block_size=64, dtype=getattr(torch, dtype))
    assert facts_of(config, request(192, cache=cache))["cache_bytes"][cache] == pool.nbytes


@pytest.mark.parametrize("speed", published_speeds(), ids=lambda s: f"{s.machine}-{s.what}-{s.context}-{s.batch}")
def test_no_published_speed_beats_its_ceiling(speed: PublishedSpeed) -> None:
    facts = speed.compare()
    assert facts["ratio"] > 1
    assert facts["ratio"] < 100  # and the ceiling is not so high that it says nothing


def test_there_are_enough_of_them() -> None:
    assert len(published_speeds()) >= 15
    assert all(speed.source for speed in published_speeds())


def test_what_the_program_reaches_is_below_every_ceiling() -> None:
    (machine,) = find_machines("laptop-avx2")
    found = plan_machine(NANO, machine, request(8192, "float32", "float32"))
    assert found.decode is not None and found.likely_decode is not None
    assert found.prefill is not None and found.likely_prefill is not None
    assert found.likely_decode.seconds > found.decode.seconds
    assert found.likely_prefill.seconds > found.prefill.seconds
    program = reached_by("avx2", "float32")
    assert program is not None and set(program.prefill.arithmetic) <= set(STAGES)
    assert all(0 < share <= 1 for share in program.prefill.arithmetic.values())


def test_machines_that_nobody_measured_have_ceilings_only() -> None:
    (machine,) = find_machines("h200x8")
    found = plan_machine(GLM, machine, request())
    assert found.decode is not None and found.likely_decode is None and found.likely_prefill is None


def test_stages_add_up_and_the_slowest_resource_is_named() -> None:
    (machine,) = find_machines("h200x8")
    decode = decode_ceiling(GLM, machine, 8192, batch=1, weights=FP8, cache="fp8")
    assert decode.seconds == pytest.approx(sum(decode.stages.values()))
    assert set(decode.stages) == set(STAGES)
    assert (decode.bound_by, decode.slowest) == ("memory", "feed_forward")
    prefill = prefill_ceiling(GLM, machine, 32768, chunk=8192, weights=FP8, cache="fp8")
    assert prefill.bound_by == "arithmetic"
    slow = decode_ceiling(
        GLM, machine, 8192, batch=1, weights=FP8, cache="fp8", placed=Placed(experts_device=0.0, experts_host=1.0)
    )
    assert slow.bound_by == "host link"


def test_a_batch_reads_weights_once_and_every_cache() -> None:
    (machine,) = find_machines("h200x8")
    one, many = (decode_ceiling(GLM, machine, 65536, batch=n, weights=FP8, cache="fp8").reads.device for n in (1, 16))
    assert many.projections == one.projections
    assert many.scores == 16 * one.scores
    assert one.feed_forward < many.feed_forward < 16 * one.feed_forward  # more experts, not as many as tokens


def test_longer_contexts_never_take_less_time() -> None:
    (machine,) = find_machines("b200x8")
    contexts = [1024, 2048, 4096, 65536, MILLION]
    decode = [decode_ceiling(GLM, machine, n, batch=1, weights=FP8, cache="fp8").seconds for n in contexts]
    prefill = [prefill_ceiling(GLM, machine, n, chunk=2048, weights=FP8, cache="fp8").seconds for n in contexts]
    assert prefill == sorted(prefill)
    assert decode[2:] == sorted(decode[2:])  # shorter ones read all latents of a few tokens more


def test_where_things_go() -> None:
    sizes = {"batch": 1, "weights": FP8, "cache": "fp8", "chunk": 2048, "draft": False}
    needs = needs_of(GLM, MILLION, **sizes)  # type: ignore[arg-type]
    fits = {name: place(needs, find_machines(name)[0]) for name in ("h200x8", "h100x8", "rtx-4090x4", "rtx-4090")}
    assert [found.fit for found in fits.values()] == ["runs", "runs with offload", "runs with offload", "does not fit"]
    assert fits["h100x8"].placed.experts_host > 0 and fits["h100x8"].disk == 0
    assert fits["rtx-4090x4"].disk > 0
    assert "on disk" in fits["rtx-4090x4"].why and "GiB of" in fits["rtx-4090"].why
    for name, found in fits.items():
        if found.fit != "does not fit":
            assert found.device + found.host + found.disk == needs.total
            assert found.device <= find_machines(name)[0].memory_bytes


def test_the_largest_context_is_the_largest() -> None:
    (machine,) = find_machines("h200x8")
    sizes = {"batch": 64, "weights": FP8, "cache": "bf16", "chunk": 2048, "draft": False}
    most = largest_context(GLM, machine, **sizes)  # type: ignore[arg-type]
    assert 0 < most < MILLION
    states = [place(needs_of(GLM, n, **sizes), machine).fit for n in (most, most + 1)]  # type: ignore[arg-type]
    assert states == ["runs", "runs with offload"]
    assert largest_context(NANO, machine, **sizes) == NANO.max_position_embeddings  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [None, "int8", "int4"])
def test_weight_bytes_are_those_that_are_allocated(weights: str | None) -> None:
    model = load_model("nano", dtype=torch.bfloat16, adapt=packing(weights))
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    assert FORMATS[weights or "bf16"].total_bytes(NANO) == sum(held.values())


def test_published_fp8_has_a_scale_for_every_tile() -> None:
    routers = sum(NANO.n_routed_experts * 4 for layer in range(NANO.num_layers_with_draft) if NANO.is_moe(layer))
    expected = routers
    for row in model_tensors(NANO):
        if row.role is not Role.ROUTER_BIAS:
            tiles = math.prod(block_grid(row.shape)) if row.is_product else 0
            expected += row.size + 4 * tiles if row.is_product else 2 * row.size
    assert FORMATS["fp8"].total_bytes(NANO) == expected


def test_what_changes() -> None:
    (machine,) = find_machines("h200x8")
    found = {change.name: change.plan for change in changes(GLM, machine, request(cache="bf16"))}
    assert set(found) >= {"as asked", "no index sharing", "cache in fp8", "weights in int4"}
    asked, unshared = found["as asked"], found["no index sharing"]
    assert asked.prefill is not None and unshared.prefill is not None
    assert unshared.prefill.seconds > 1.5 * asked.prefill.seconds
    assert unshared.needs.index_keys / asked.needs.index_keys == pytest.approx(78 / 21)
    assert found["cache in fp8"].needs.latents < asked.needs.latents


def test_the_matrix_says_for_each_machine_and_context() -> None:
    machines = [find_machines(name)[0] for name in ("laptop-avx2", "h200x8")]
    rows = matrix(GLM, machines, [8192, MILLION], request())
    assert [[found.fit for found in row] for row in rows] == [["does not fit"] * 2, ["runs"] * 2]


def test_claims_are_settled_by_the_configuration() -> None:
    settled = {claim.said: claim.agrees for claim in claims(GLM)}
    assert settled["744 B parameters"] and settled["753 B parameters (with the draft layer)"]
    assert settled["the first three layers dense, experts in the rest"]
    for wrong in (
        "a 64 B model",
        "dense layers and layers of experts in alternation",
        "32 GB of cache at a million tokens",
    ):
        assert not settled[wrong]
    assert claims(NANO)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"context": 0}, "expected at least 1"),
        ({"batch": 0}, "expected at least 1"),
        ({"context": MILLION + 1}, "made for"),
    ],
)
def test_sizes_that_cannot_be(changed: dict[str, int], message: str) -> None:
    sizes = {"context": 8, "batch": 1} | changed
    with pytest.raises(ValueError, match=message):
        Request(weights=FP8, cache="bf16", **sizes).check(GLM)  # type: ignore[arg-type]


def test_unknown_formats() -> None:
    with pytest.raises(ValueError, match="did you mean 'int8'"):
        weight_format("int9")
    with pytest.raises(ValueError, match="expected one of float32, bf16, fp8, int8"):
        facts_of(GLM, request()) and needs_of(GLM, 8, batch=1, weights=FP8, cache="fp9", chunk=8, draft=False)
    assert set(CACHE_FORMATS) == {"float32", "bf16", "fp8", "int8"}


def test_a_model_without_sharing_plans_alike() -> None:
    plain = without_sharing(GLM)
    (machine,) = find_machines("h200x8")
    plan = plan_machine(plain, machine, request())
    assert "no index sharing" not in {change.name for change in changes(plain, machine, request())}
    assert plan.to_dict(1)["fits"] is True
