"""Losses against formulas written out: values, gradients, ignored positions, chunks; and the experts' bias."""

import math

import pytest
import torch
from torch import Tensor

from indexshare.cache.view import InFlightView
from indexshare.config import ModelConfig
from indexshare.data.batch import IGNORE, Batch
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.observe import Observer
from indexshare.model.selection import FULL_ATTENTION
from indexshare.ops.loss import torch_impl as loss
from indexshare.train import losses
from indexshare.train.losses import next_token_loss, next_token_loss_reference, token_losses
from indexshare.train.objectives.balance import update_expert_bias
from indexshare.train.objectives.draft import draft_losses
from indexshare.train.optim import is_indexer
from indexshare.train.steps import draft_states
from tests.tolerance import TOL

VOCAB, WIDTH = 37, 12
CHUNK = 5


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of five rows, so that chunk boundaries are crossed."""
    monkeypatch.setattr(losses, "_CHUNK_BYTES", CHUNK * 4 * VOCAB)
    monkeypatch.setattr(loss, "CHUNK_BYTES", CHUNK * 4 * VOCAB)


def _case(rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = torch.randn(rows, WIDTH), torch.randn(VOCAB, WIDTH)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), torch.randint(VOCAB, (rows,))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 23])
@pytest.mark.parametrize("ignored", ["none", "some", "all"])
def test_the_fused_loss_equals_the_reference(rows: int, dtype: torch.dtype, ignored: str) -> None:
    hidden, weight, targets = _case(rows, dtype)
    if ignored != "none":
        targets[:: 2 if ignored == "some" else 1] = IGNORE
    name = str(dtype)[6:]
    expected = next_token_loss_reference(hidden, weight, targets)
    wanted = torch.autograd.grad(3 * expected, (hidden, weight))
    actual = next_token_loss(hidden, weight, targets)
    got = torch.autograd.grad(3 * actual, (hidden, weight))
    assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(actual, expected, **TOL["next-token loss", name].bounds)
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == dtype
        if dtype == torch.bfloat16:
            assert (a.float() - b.float()).norm() <= TOL["next-token gradient", name].rtol * b.float().norm()
        else:
            torch.testing.assert_close(a, b, **TOL["next-token loss", name].bounds)
    if ignored == "all":
        assert actual == 0 and not any(g.any() for g in got)


def test_gradients_by_finite_differences() -> None:
    hidden, weight, targets = _case(7, torch.float64)
    targets[2] = IGNORE
    assert torch.autograd.gradcheck(lambda h, w: next_token_loss(h, w, targets), (hidden, weight))


def test_gradients_for_one_side_only() -> None:
    for frozen in (0, 1):
        hidden, weight, targets = _case(11)
        leaves = (hidden, weight)
        leaves[frozen].requires_grad_(False)
        (expected,) = torch.autograd.grad(next_token_loss_reference(hidden, weight, targets), leaves[1 - frozen])
        next_token_loss(hidden, weight, targets).backward()
        assert leaves[frozen].grad is None
        torch.testing.assert_close(leaves[1 - frozen].grad, expected, **TOL["next-token loss", "float32"].bounds)


def test_no_gradient_is_made_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = _case(11)
    with torch.no_grad():
        expected = next_token_loss_reference(hidden, weight, targets)
        monkeypatch.setattr(Tensor, "scatter_add_", lambda *_: pytest.fail("a gradient was computed"))
        actual = next_token_loss(hidden, weight, targets)
    torch.testing.assert_close(actual, expected, **TOL["next-token loss", "float32"].bounds)


def test_shares_of_a_batch_add_up_to_its_mean() -> None:
    hidden, weight, targets = _case(20)
    targets[3:9] = IGNORE
    whole = next_token_loss(hidden, weight, targets)
    shares = [next_token_loss(hidden[s], weight, targets[s], count=14) for s in (slice(0, 8), slice(8, 20))]
    torch.testing.assert_close(sum(shares), whole, **TOL["next-token loss", "float32"].bounds)
    assert next_token_loss(hidden, weight, torch.full((20,), IGNORE)) == 0


def test_losses_by_token_are_those_of_the_mean() -> None:
    hidden, weight, targets = _case(13)
    losses = token_losses(hidden, weight, targets)
    torch.testing.assert_close(
        losses.mean(), next_token_loss_reference(hidden, weight, targets), **TOL["next-token loss", "float32"].bounds
    )
    assert token_losses(hidden[:0], weight, targets[:0]).shape == (0,)


def test_the_bias_moves_against_the_load() -> None:
    bias = torch.tensor([0.5, 0.0, -0.25, 0.0])
    update_expert_bias(bias, torch.tensor([9, 1, 5, 5]), 0.125)
    assert bias.tolist() == [0.375, 0.125, -0.25, 0.0]
    biases = torch.zeros(3)
    for _ in range(50):  # a router with a strong liking for expert 0 is balanced in the end
        choice = (torch.tensor([0.3, 0.1, 0.0]) + biases + 0.05 * torch.randn(300, 3)).argmax(-1)
        load = torch.bincount(choice, minlength=3)
        update_expert_bias(biases, load, 0.01)
    assert load.max() < 150 and biases[0] < biases[1] < biases[2]


# The draft layer


def _model(config: ModelConfig) -> GlmMoeDsa:
    return GlmMoeDsa(config.replace(index_topk=6)).initialise(3).double().train()


@pytest.mark.parametrize("below", [0, FULL_ATTENTION])
@pytest.mark.parametrize("steps", [1, 3])
def test_draft_losses_equal_a_slot_by_slot_computation(steps: int, below: int, model_config: ModelConfig) -> None:
    """Slot i at step j: embedding of token i + j with the state before, scored against token i + j + 1."""
    model = _model(model_config)
    assert model.mtp is not None
    rows, length = 2, 11
    tokens = torch.randint(model_config.vocab_size, (rows, length + 1))
    view = InFlightView([length] * rows)
    hidden = model.trunk(tokens[:, :-1].reshape(-1), view, full_attention_below=below)
    batch = Batch(tokens=tokens)
    states = draft_states(model, batch, hidden, view, steps, below=below, observer=Observer())
    actual = draft_losses(model, batch, states)
    expected = [0.0] * steps
    with torch.no_grad():
        for row in tokens:
            alone = InFlightView([length])
            state = None
            trunk = model.trunk(row[:-1], alone, full_attention_below=below)
            for j in range(1, steps + 1):
                # Beyond the end of the row there is no token to embed; those slots are never scored.
                embedded = model.embed_tokens(torch.tensor([int(row[min(i + j, length)]) for i in range(length)]))
                state = (
                    model.mtp(embedded, trunk, alone, full_attention_below=below)
                    if state is None
                    else model.mtp.step(embedded, state, alone, j)
                )
                for slot in range(length):
                    if slot + j + 1 <= length:
                        logits = model.lm_head.weight @ state.hidden[slot]
                        expected[j - 1] -= float(logits.log_softmax(-1)[row[slot + j + 1]])
    torch.testing.assert_close(
        torch.stack(actual).detach(), torch.tensor(expected, dtype=torch.float64), **TOL["draft loss", "float64"].bounds
    )


def test_draft_losses_teach_the_draft_layer_alone(model_config: ModelConfig) -> None:
    model = _model(model_config)
    tokens = torch.randint(model_config.vocab_size, (2, 12))
    view = InFlightView([11, 11])
    hidden = model.trunk(tokens[:, :-1].reshape(-1), view)
    batch = Batch(tokens=tokens)
    states = draft_states(model, batch, hidden, view, 2, below=0, observer=Observer())
    sum(draft_losses(model, batch, states)).backward()  # type: ignore[union-attr]
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert with_gradient == {n for n, _ in model.named_parameters() if n.startswith("mtp.") and not is_indexer(n)}


def test_a_model_without_draft_layer_is_refused(model_config: ModelConfig) -> None:
    model = GlmMoeDsa(model_config.replace(num_nextn_predict_layers=0)).initialise(0)
    tokens = torch.zeros(1, 5, dtype=torch.int64)
    view = InFlightView([4])
    hidden = model.trunk(tokens[0, :-1], view)
    with pytest.raises(ValueError, match="the model has none"):
        draft_states(model, Batch(tokens=tokens), hidden, view, 1, below=0, observer=Observer())


def test_a_uniform_head_costs_the_logarithm_of_the_vocabulary() -> None:
    hidden, _, targets = _case(9)
    assert next_token_loss(hidden, torch.zeros(VOCAB, WIDTH), targets).item() == pytest.approx(math.log(VOCAB))
