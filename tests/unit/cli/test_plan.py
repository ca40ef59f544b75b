"""`indexshare plan`: tables for people, one JSON object for machines, pictures, and clear refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GLM = ("plan", "glm-5.2", "--weights", "fp8", "--cache-dtype", "fp8", "--hardware", "h200x8")


def test_json_has_what_scripts_ask_for(run: Callable[..., Any]) -> None:
    result = run(*GLM, "--context", "1M", "--json")
    assert (result.code, result.err) == (0, "")
    facts = json.loads(result.out)
    assert facts["parameters_total"] == 753_329_921_024
    assert facts["cache_bytes_per_token"]["bf16"] == 95_232 and facts["cache_bytes_per_token"]["fp8"] == 53_940
    assert 2.7 < facts["flops_per_token"]["ratio"] < 2.95
    assert facts["flops_per_token"]["counting"]
    assert (facts["fits"], facts["bound_by"]) == (True, "memory")
    assert facts["machines"][0]["machine"] == "h200x8"


def test_every_view_in_text_and_in_json(run: Callable[..., Any], tmp_path: Path) -> None:
    views = ("--matrix", "--changes", "--explain", "--published")
    picture = tmp_path / "plan.png"
    result = run(*GLM, *views, "--plot", picture)
    assert result.code == 0
    for said in ("RTX 4090", "no index sharing", "a 64 B model", "SGLang cookbook", "offload"):
        assert said in result.out, said
    assert picture.read_bytes().startswith(b"\x89PNG")
    facts = json.loads(run(*GLM, *views, "--json").out)
    assert {"matrix", "changes", "claims", "published"} <= set(facts)
    assert all(row["ratio"] > 1 for row in facts["published"])


def test_the_machine_at_hand_is_measured(run: Callable[..., Any]) -> None:
    result = run("plan", "nano", "--json")
    facts = json.loads(result.out)
    assert result.code == 0
    assert facts["fits"] is True
    assert facts["machines"][0]["machine"] == "here"
    assert facts["machines"][0]["tokens_per_second_at_most"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "glm-5.3"), "did you mean 'glm-5.2'"),
        (("plan", "nano", "--hardware", "h2000"), "did you mean 'h200'"),
        (("plan", "nano", "--weights", "int5"), "did you mean 'int"),
        (("plan", "nano", "--cache-dtype", "int4", "--hardware", "h200"), "--cache-dtype is 'int4'; expected one of"),
        (("plan", "nano", "--context", "99999999"), "was made for 32,768 tokens"),
        (
            ("plan", "nano", "--context", "1e6"),
            "--context is '1e6'; expected a number of tokens such as 8192, 128K or 1M",
        ),
        (("plan", "nano", "--batch", "0"), "expected at least 1"),
        (("plan", "nano", "--hardware", "h200", "--plot", "x.bmp"), "expected a name that ends in one of"),
    ],
)
def test_refusals(run: Callable[..., Any], arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
