"""One update: the same loss and gradients however the batch is cut, and which loss reaches which parameters."""

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from indexshare.cache.view import InFlightView
from indexshare.config import ModelConfig
from indexshare.data.batch import Batch
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.observe import AttentionRecord, IndexTensors, Observer
from indexshare.model.selection import FULL_ATTENTION
from indexshare.ops.indexer import reference
from indexshare.train.objectives import Balance, Draft, Indexer
from indexshare.train.optim import MixedOptimizer, OptimConfig, is_indexer
from indexshare.train.stages import Stage, indexer_warmup, pretrain, sparse
from indexshare.train.steps import train_batch
from indexshare.train.workers import Workers
from tests.tolerance import TOL

LENGTH, ROWS = 20, 6
SHAPE: dict[str, Any] = {"tokens": 10 * LENGTH * ROWS, "sequence_length": LENGTH, "batch_tokens": LENGTH * ROWS}
STAGES = {
    "pretrain": pretrain(**SHAPE).learning(Draft(steps=2)),
    "warmup": indexer_warmup(**SHAPE).learning(Balance(rate=1e-2)),
    "sparse": sparse(**SHAPE).learning(Draft(), Indexer(weight=2.0)),
}


def _model(config: ModelConfig) -> GlmMoeDsa:
    """In float64, so that no choice of keys or experts hangs on the order of sums."""
    return GlmMoeDsa(config).initialise(1).double().train()


def _run(
    model: GlmMoeDsa,
    stage: Stage,
    tokens: Tensor,
    *,
    rows: int = ROWS,
    workers: int = 1,
    step: int = 0,
    positions: Tensor | None = None,
) -> tuple[dict[str, float], dict[str, Tensor | None]]:
    """Metrics and summed gradients of one update; the experts' biases are put back."""
    model.zero_grad(set_to_none=True)  # parameters in float32 are their own masters
    biases = {name: b.clone() for name, b in model.named_buffers()}
    optimizer = MixedOptimizer(model, model.config, OptimConfig())
    cut = replace(stage, micro_tokens=rows * LENGTH)
    metrics = train_batch(model, optimizer, cut, Batch(tokens=tokens, positions=positions), step, Workers(workers))
    for name, buffer in model.named_buffers():
        buffer.copy_(biases[name])
    return metrics, {name: master.grad for name, (_, master) in optimizer._pairs.items()}


@pytest.fixture
def tokens(model_config: ModelConfig) -> Tensor:
    return torch.randint(model_config.vocab_size, (ROWS, LENGTH + 1))


@pytest.mark.parametrize("kind", STAGES)
def test_any_cut_of_the_batch_gives_the_same_update(kind: str, tokens: Tensor, model_config: ModelConfig) -> None:
    model = _model(model_config)
    if kind == "warmup":
        for name, p in model.named_parameters():
            p.requires_grad_(is_indexer(name))
    whole, wanted = _run(model, STAGES[kind], tokens)
    assert whole["loss"] > 0
    for rows, workers in ((1, 1), (2, 1), (4, 1), (6, 2), (1, 3), (4, 4)):
        metrics, grads = _run(model, STAGES[kind], tokens, rows=rows, workers=workers)
        assert metrics.keys() == whole.keys()
        for key, value in whole.items():
            assert metrics[key] == pytest.approx(value, rel=TOL["micro-batches", "loss"].rtol), key
        for name, expected in wanted.items():
            actual = grads[name]
            assert (actual is None) == (expected is None), name
            if actual is not None and expected is not None:
                torch.testing.assert_close(actual, expected, **TOL["micro-batches", "float32"].bounds)


def test_workers_give_bit_for_bit_what_one_gives(tokens: Tensor, model_config: ModelConfig) -> None:
    model, threads = _model(model_config).float(), torch.get_num_threads()
    torch.set_num_threads(1)  # as every worker has
    try:
        wanted, expected = _run(model, STAGES["sparse"], tokens, rows=1, workers=1)
    finally:
        torch.set_num_threads(threads)
    for workers in (2, 3, 3):
        metrics, grads = _run(model, STAGES["sparse"], tokens, rows=1, workers=workers)
        assert metrics == wanted
        assert all(grad is not None and torch.equal(grad, expected[name]) for name, grad in grads.items())


def test_the_experts_bias_moves_by_the_load_of_the_whole_batch(tokens: Tensor, model_config: ModelConfig) -> None:
    stage = STAGES["sparse"].learning(Balance(rate=0.25))
    results = []
    for rows, workers in ((6, 1), (1, 1), (2, 3)):
        model = _model(model_config)
        cut = replace(stage, micro_tokens=rows * LENGTH)
        optimizer = MixedOptimizer(model, model_config, OptimConfig())
        train_batch(model, optimizer, cut, Batch(tokens=tokens), 0, Workers(workers))
        results.append({n: b.clone() for n, b in model.named_buffers()})
    assert len(results[0]) == 4  # three expert layers and the draft layer
    for buffers in results:
        for name, bias in buffers.items():
            assert torch.equal(bias, results[0][name])
            assert set(bias.abs().tolist()) <= {0.0, 0.25} and bias.any()


def _gradients(model: GlmMoeDsa, stage: Stage, tokens: Tensor) -> dict[str, Tensor | None]:
    return _run(model, stage, tokens)[1]


def test_the_indexer_loss_reaches_indexers_only(tokens: Tensor, model_config: ModelConfig) -> None:
    model, stage = _model(model_config), STAGES["sparse"]
    light, heavy = (_gradients(model, stage.learning(Indexer(weight=w)), tokens) for w in (1.0, 64.0))
    without = _gradients(model, stage.without(Indexer), tokens)
    for name, grad in light.items():
        other = heavy[name]
        assert grad is not None and other is not None
        if is_indexer(name):
            assert without[name] is None and grad.any(), name  # no other loss reaches an indexer
            torch.testing.assert_close(other, 64 * grad, **TOL["micro-batches", "float32"].bounds)
        else:
            torch.testing.assert_close(other, grad, rtol=0, atol=0)
            torch.testing.assert_close(without[name], grad, rtol=0, atol=0)


def test_the_draft_loss_reaches_the_draft_layer_only(tokens: Tensor, model_config: ModelConfig) -> None:
    model, stage = _model(model_config), STAGES["pretrain"]
    with_draft = _gradients(model, stage.learning(Draft(weight=0.5, steps=2)), tokens)
    without = _gradients(model, stage.without(Draft), tokens)
    for name, grad in with_draft.items():
        if is_indexer(name):
            assert grad is None
        elif name.startswith("mtp."):
            assert grad is not None and grad.any() and without[name] is None
        else:
            torch.testing.assert_close(grad, without[name], rtol=0, atol=0)


def test_warm_up_trains_indexers_only_and_all_of_them(tokens: Tensor, model_config: ModelConfig) -> None:
    model = _model(model_config)
    grads = _gradients(model, STAGES["warmup"], tokens)
    reached = {name for name, grad in grads.items() if grad is not None and grad.any()}
    assert reached == {name for name in grads if is_indexer(name)}
    assert any(name.startswith("mtp.") for name in reached)


def test_the_draft_loss_begins_where_it_should(tokens: Tensor, model_config: ModelConfig) -> None:
    model, stage = _model(model_config), STAGES["pretrain"].learning(Draft(steps=2, after=0.5))
    assert stage.steps == 10
    assert ["draft_loss" in _run(model, stage, tokens, step=s)[0] for s in (0, 4, 5, 9)] == [False, False, True, True]


class Recorder(Observer):
    """Keeps what the indexers' losses are made from."""

    wants_attention = True

    def __init__(self) -> None:
        self.records: list[AttentionRecord] = []

    def attention(self, record: AttentionRecord) -> None:
        self.records.append(record)


def _naive_indexer_loss(record: AttentionRecord, selected_only: bool) -> list[float]:
    """KL of every row of a Full layer, one query at a time."""
    assert record.index is not None
    chosen = dict(zip(record.selection.rows.tolist(), record.selection.slots, strict=True))
    losses = []
    for span in record.view.spans:
        for row in range(span.start, span.stop):
            keys = torch.arange(span.start, row + 1)
            if selected_only and row in chosen:
                keys = chosen[row]
            logits = record.queries[row] @ record.latents[keys].T * record.scale
            target = logits.softmax(-1).mean(0)
            dots = (record.index.q[row] @ record.index.keys[keys].T).relu()
            log_scores = (record.index.weights[row] @ dots).log_softmax(-1)
            losses.append(float((target * (target.log() - log_scores)).sum()))
    return losses


@pytest.mark.parametrize("kind", ["all", "selected"])
def test_the_indexer_loss_is_the_mean_over_layers_and_rows(
    kind: Any, tokens: Tensor, model_config: ModelConfig
) -> None:
    model = _model(model_config.replace(num_nextn_predict_layers=0))
    stage = sparse(**SHAPE).learning(Indexer(keys=kind))
    recorder = Recorder()
    with torch.no_grad():
        view = InFlightView([LENGTH] * ROWS)
        model.trunk(tokens[:, :-1].reshape(-1), view, observer=recorder)
    assert [r.layer for r in recorder.records if r.index is not None] == [0, 1, 2]
    losses = [
        loss for r in recorder.records if r.index is not None for loss in _naive_indexer_loss(r, kind == "selected")
    ]
    assert len(losses) == 3 * ROWS * LENGTH
    metrics, _ = _run(model, stage, tokens, rows=2)
    assert metrics["indexer_loss"] == pytest.approx(sum(losses) / len(losses), rel=TOL["micro-batches", "loss"].rtol)


def test_served_indexers_learn_the_mean_attention_of_their_layers(tokens: Tensor, model_config: ModelConfig) -> None:
    """A KL for each layer, averaged, has the gradient of one KL to the mean target (IndexCache, proposition 1)."""
    model = _model(model_config.replace(num_nextn_predict_layers=0))
    plan = model_config.share_plan
    assert plan.served_by(2) == (2, 3)
    recorder, observer = Recorder(), Indexer(keys="all", target="served").observer(model)
    view = InFlightView([LENGTH] * ROWS)
    with torch.no_grad():
        model.trunk(tokens[:, :-1].reshape(-1), view, observer=recorder)
    last = recorder.records[2].index
    assert last is not None
    leaves = [t.clone().requires_grad_() for t in (last.q, last.weights, last.keys)]
    for record in recorder.records:
        index = IndexTensors(*leaves) if record.layer == 2 else record.index
        observer.attention(replace(record, index=index))
    assert observer.loss is not None and observer.rows == 3 * ROWS * LENGTH
    observer.loss.backward()
    q, weights, keys = (t.detach().requires_grad_() for t in leaves)
    total = torch.zeros((), dtype=torch.float64)
    for span in view.spans:
        rows = slice(span.start, span.stop)
        visible = torch.ones(LENGTH, LENGTH).tril().bool()
        targets = [
            reference.attention_target(r.queries[rows], r.latents[rows], visible, r.scale) for r in recorder.records[2:]
        ]
        scores = reference.index_scores(q[rows], weights[rows], keys[rows])
        total = total + reference.kl_of_scores(scores, torch.stack(targets).mean(0), visible)
    total.backward()
    for leaf, wanted in zip(leaves, (q, weights, keys), strict=True):
        assert leaf.grad is not None and wanted.grad is not None and wanted.grad.any()
        torch.testing.assert_close(leaf.grad, wanted.grad, **TOL["draft loss", "float64"].bounds)


def test_metrics_name_what_is_trained(tokens: Tensor, model_config: ModelConfig) -> None:
    model = _model(model_config)
    metrics = {kind: _run(model, stage, tokens)[0] for kind, stage in STAGES.items()}
    assert metrics["pretrain"].keys() == {"loss", "draft_loss", "load_imbalance"}
    assert metrics["warmup"].keys() == {"loss", "indexer_loss", "load_imbalance"}
    assert metrics["sparse"].keys() == {"loss", "draft_loss", "indexer_loss", "load_imbalance"}
    assert metrics["warmup"]["loss"] == metrics["warmup"]["indexer_loss"]
    assert all(m["load_imbalance"] >= 1.0 for m in metrics.values())


def test_no_worker_is_idle_and_all_run_one_compute_thread(
    tokens: Tensor, model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen, trunk = _model(model_config), [], GlmMoeDsa.trunk

    def watched(self: GlmMoeDsa, ids: Tensor, *args: Any, **settings: Any) -> Tensor:
        seen.append(
            (len(ids) // LENGTH, threading.current_thread() is threading.main_thread(), torch.get_num_threads())
        )
        return trunk(self, ids, *args, **settings)

    monkeypatch.setattr(GlmMoeDsa, "trunk", watched)
    _run(model, STAGES["pretrain"], tokens, rows=ROWS, workers=2)
    assert seen == [(3, False, 1)] * 2
    seen.clear()
    _run(model, STAGES["pretrain"], tokens, rows=4, workers=1)
    assert [(rows, main) for rows, main, _ in seen] == [(4, True), (2, True)]
    with pytest.raises(ValueError, match="0 workers"):
        Workers(0)


def test_errors_of_workers_come_out(tokens: Tensor, model_config: ModelConfig) -> None:
    model = _model(model_config)
    tokens[-1, 3] = model_config.vocab_size
    with pytest.raises(ValueError, match="outside the vocabulary"):
        _run(model, STAGES["pretrain"], tokens, rows=1, workers=2)


def test_full_attention_ignores_the_selection(tokens: Tensor, model_config: ModelConfig) -> None:
    model = _model(model_config)
    dense = pretrain(**SHAPE)
    full = model.trunk(tokens[:, :-1].reshape(-1), InFlightView([LENGTH] * ROWS), full_attention_below=FULL_ATTENTION)
    logits = (full @ model.lm_head.weight.T).detach()
    expected = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].reshape(-1))
    assert _run(model, dense, tokens)[0]["loss"] == pytest.approx(
        float(expected), rel=TOL["micro-batches", "loss"].rtol
    )
    with_selection = _run(model, replace(dense, attention="sparse"), tokens)[0]["loss"]
    assert abs(with_selection - float(expected)) > 1e-3


@pytest.mark.parametrize("kind", STAGES)
def test_positions_turn_queries_and_keys_alike(kind: str, tokens: Tensor, model_config: ModelConfig) -> None:
    """RoPE is relative: moving a whole row changes nothing, stretching it does."""
    model = _model(model_config)
    row = torch.arange(LENGTH).repeat(ROWS, 1)
    plain, _ = _run(model, STAGES[kind], tokens)
    moved, _ = _run(model, STAGES[kind], tokens, rows=4, positions=row + 1000)
    assert moved["loss"] == pytest.approx(plain["loss"], rel=TOL["micro-batches", "float32"].rtol)
    stretched, _ = _run(model, STAGES[kind], tokens, positions=row + 500 * (row >= LENGTH // 2))
    assert stretched["loss"] != pytest.approx(plain["loss"], rel=1e-6)
