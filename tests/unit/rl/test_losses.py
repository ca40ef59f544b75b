"""Losses and their gradients against naive float64 twins, under every rule of masking, and however the batch is cut."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from indexshare.rl import distill, losses_reference
from indexshare.rl.losses import Ratio, kept_ratio, policy_loss, token_entropies, token_logprobs, value_loss
from tests.tolerance import TOL

N, H, V = 24, 6, 11
RATIOS = [Ratio(), Ratio(low=0.2, high=4.0), Ratio(kind="clip", low=0.8, high=1.28)]
BOUNDS = TOL["operation", "float64"].bounds


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def inputs() -> dict[str, Tensor]:
    """Tokens whose ratios lie below, between and above all bounds."""
    hidden, head = numbers(N, H), numbers(V, H, seed=1)
    targets = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(2))
    now = token_logprobs(hidden, head, targets).detach()
    return {
        "hidden": hidden.requires_grad_(), "head": head.requires_grad_(), "targets": targets,
        "behaviour": now - torch.linspace(-2.5, 2.5, N, dtype=torch.float64), "advantages": numbers(N, seed=3),
        "weights": torch.rand(N, generator=torch.Generator().manual_seed(4), dtype=torch.float64) / N,
    }  # fmt: skip


def gradients(loss: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [given["hidden"], given["head"]])


def assert_same(found: Tensor, wanted: Tensor, given: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found, wanted, **BOUNDS)
    for a, b in zip(gradients(found, given), gradients(wanted, given), strict=True):
        torch.testing.assert_close(a, b, **BOUNDS)


def direct(given: dict[str, Tensor], ratio: Ratio, rows: slice = slice(None)) -> Tensor:
    logprobs = token_logprobs(given["hidden"][rows], given["head"], given["targets"][rows], rows=5)
    parts = (given[name][rows] for name in ("behaviour", "advantages", "weights"))
    return policy_loss(logprobs, *parts, ratio)


@pytest.mark.parametrize("ratio", RATIOS, ids=lambda r: f"{r.kind} {r.low} {r.high}")
def test_the_policy_gradient_is_that_of_the_twin(ratio: Ratio) -> None:
    given = inputs()
    logprobs = losses_reference.logprobs(given["hidden"], given["head"], given["targets"])
    lists = [given[name].tolist() for name in ("behaviour", "advantages", "weights")]
    assert_same(direct(given, ratio), losses_reference.policy_loss(logprobs, *lists, ratio), given)


@pytest.mark.parametrize("ratio", RATIOS, ids=lambda r: f"{r.kind} {r.low} {r.high}")
@pytest.mark.parametrize("rows", [1, 7])
def test_micro_batches_add_up(ratio: Ratio, rows: int) -> None:
    given = inputs()
    cut = torch.stack([direct(given, ratio, slice(at, at + rows)) for at in range(0, N, rows)]).sum()
    assert_same(cut, direct(given, ratio), given)


def test_the_direct_mask_is_double_sided_and_has_no_gradient() -> None:
    ratio = Ratio(low=0.5, high=2.0)
    behaviour = torch.zeros(5, dtype=torch.float64)
    logprobs = torch.tensor([0.4, 0.6, 1.0, 1.9, 2.1], dtype=torch.float64).log().requires_grad_()
    for sign in (1.0, -1.0):  # whatever the sign of the advantage
        loss = policy_loss(logprobs, behaviour, torch.full((5,), sign, dtype=torch.float64), torch.ones(5) / 5, ratio)
        (gradient,) = torch.autograd.grad(loss, logprobs)
        # the ratio is a constant factor: no r * (1 + log p) appears; masked tokens stay in the denominator
        torch.testing.assert_close(gradient, -sign / 5 * torch.tensor([0.0, 0.6, 1.0, 1.9, 0.0], dtype=torch.float64))
    assert kept_ratio(logprobs, behaviour - 1e4, ratio).tolist() == [0.0] * 5


def test_the_clip_is_one_sided() -> None:
    ratio = Ratio(kind="clip", low=0.8, high=1.2)
    logprobs = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).log().requires_grad_()
    for sign, wanted in ((1.0, [0.5, 1.0, 0.0]), (-1.0, [0.0, 1.0, 2.0])):
        advantages = torch.full((3,), sign, dtype=torch.float64)
        loss = policy_loss(logprobs, torch.zeros(3), advantages, torch.ones(3), ratio)
        (gradient,) = torch.autograd.grad(loss, logprobs)
        torch.testing.assert_close(gradient, -sign * torch.tensor(wanted, dtype=torch.float64))
    far = policy_loss(logprobs, torch.full((3,), -1e4), torch.zeros(3), torch.ones(3), ratio)
    assert torch.isfinite(far)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_critic_is_that_of_the_twin(clip: float | None) -> None:
    values = numbers(N).requires_grad_()
    targets, weights, before = (
        numbers(N, seed=1),
        numbers(N, seed=2).abs(),
        values.detach() + numbers(N, seed=3, scale=0.3),
    )
    found = value_loss(values, targets, weights, before=before, clip=clip)
    wanted = losses_reference.value_loss(values, targets.tolist(), weights.tolist(), before.tolist(), clip)
    torch.testing.assert_close(found, wanted, **BOUNDS)
    for a, b in zip(torch.autograd.grad(found, values), torch.autograd.grad(wanted, values), strict=True):
        torch.testing.assert_close(a, b, **BOUNDS)


def test_log_probabilities_in_chunks_and_their_entropy() -> None:
    given = inputs()
    wanted = (given["hidden"] @ given["head"].T).log_softmax(-1).detach()
    for rows in (1, 5, N, None):
        found = token_logprobs(given["hidden"], given["head"], given["targets"], rows=rows)
        own = losses_reference.logprobs(given["hidden"], given["head"], given["targets"])
        torch.testing.assert_close(found, own, **BOUNDS)
        assert_same(found.sum(), own.sum(), given)
    entropies = token_entropies(given["hidden"], given["head"])
    torch.testing.assert_close(entropies, -(wanted.exp() * wanted).sum(-1), **BOUNDS)
    nothing = token_logprobs(given["hidden"][:0], given["head"], given["targets"][:0])
    assert nothing.shape == (0,)


def test_the_sampled_token_of_a_teacher_as_advantage() -> None:
    student, teacher = torch.tensor([-1.0, -2.0, -9.0]), torch.tensor([-2.0, -1.0, -1.0])
    assert distill.sampled_token_advantages(student, teacher).tolist() == [-1.0, 1.0, 8.0]
    assert distill.sampled_token_advantages(student, teacher, scale=0.5, limit=2.0).tolist() == [-0.5, 0.5, 1.0]


@pytest.mark.parametrize("k", [1, 3, V])
def test_the_k_likeliest_tokens_of_a_teacher(k: int) -> None:
    given, logits = inputs(), numbers(N, V, seed=8)
    teacher, ids = logits.log_softmax(-1).topk(k)
    found = distill.top_k_loss(given["hidden"], given["head"], ids, teacher, given["weights"], rows=5)
    student = given["hidden"] @ given["head"].T
    lists: list[Any] = [ids.tolist(), teacher.tolist(), given["weights"].tolist()]
    assert_same(found, losses_reference.top_k_reverse_kl(student, *lists), given)
    if k == V:
        whole = losses_reference.reverse_kl(student, logits, given["weights"].tolist())
        torch.testing.assert_close(found, whole, **BOUNDS)


def test_the_whole_vocabulary_from_hidden_states_of_a_teacher() -> None:
    given, states, other = inputs(), numbers(N, 4, seed=8), numbers(V, 4, seed=9)
    found = distill.full_vocabulary_loss(given["hidden"], given["head"], states, other, given["weights"], rows=5)
    student = given["hidden"] @ given["head"].T
    assert_same(found, losses_reference.reverse_kl(student, states @ other.T, given["weights"].tolist()), given)


def test_nothing_is_learned_from_oneself() -> None:
    given = inputs()
    makers: list[Callable[[], Tensor]] = [
        lambda: distill.full_vocabulary_loss(
            given["hidden"], given["head"], given["hidden"].detach(), given["head"].detach(), given["weights"]
        ),
    ]
    for make in makers:
        loss = make()
        assert abs(float(loss)) < 1e-12 and all(g.abs().max() < 1e-12 for g in gradients(loss, given))


@pytest.mark.parametrize("bounds", [(1.0, 2.0), (0.5, 1.0), (-0.1, 2.0)])
def test_bounds_without_one_between_them_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="expected 0 <= low < 1 < high"):
        Ratio(low=bounds[0], high=bounds[1])
