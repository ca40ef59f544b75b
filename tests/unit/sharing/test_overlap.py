"""Overlap, attention kept and indexers' health against plain counting; windows; work that goes on."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from indexshare.cache.view import InFlightView
from indexshare.config.presets import preset
from indexshare.config.variant import Everything, GroupedAttention, Variant
from indexshare.data.splitting import Document
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.observe import AttentionRecord, Observer
from indexshare.sharing.explain import explain
from indexshare.sharing.overlap import RANGES, OverlapReport, measure_overlap
from indexshare.sharing.sampled import sample_queries
from indexshare.sharing.state_file import StateFile
from indexshare.sharing.windows import check_window, take_windows
from indexshare.text.tokenizer import train_bpe
from tests.unit.sharing.conftest import noisy


class Keep(Observer):
    """Records of one pass."""

    wants_attention = True

    def __init__(self) -> None:
        self.records: list[AttentionRecord] = []

    def attention(self, record: AttentionRecord) -> None:
        self.records.append(record)


@torch.no_grad()
def records(model: GlmMoeDsa, window: Tensor) -> list[AttentionRecord]:
    keep = Keep()
    model.trunk(window, InFlightView([window.numel()]), observer=keep)
    return keep.records


def attention_at(record: AttentionRecord, position: int) -> list[float]:
    """One query's attention over all tokens up to it, mean over heads, by the formula."""
    rows = record.latents[: position + 1].double()
    logits = record.queries[position].double() @ rows.T * record.scale
    return logits.softmax(-1).mean(0).tolist()


def test_figures_are_those_of_plain_counting(full_model: GlmMoeDsa, windows: Tensor) -> None:
    report = measure_overlap(full_model, windows, queries=1000)
    topk, layers = 8, 6
    queries = [(w, p) for w in range(3) for p in range(topk, 40)]
    kept = [records(full_model, window) for window in windows]
    chosen = {
        (w, layer, p): set(kept[w][layer].selection.positions[p - topk].tolist())
        for w, p in queries
        for layer in range(layers)
    }
    assert report.queries == report.possible == len(queries)
    for a in range(layers):
        for b in range(layers):
            common = sum(len(chosen[w, a, p] & chosen[w, b, p]) for w, p in queries) / topk / len(queries)
            assert report.overlap[0][a][b] == pytest.approx(common, abs=1e-9)
            if b > a:
                assert report.recall[0][a][b] is None
                continue
            held = [sum(attention_at(kept[w][a], p)[s] for s in chosen[w, b, p]) for w, p in queries]
            assert report.recall[0][a][b] == pytest.approx(sum(held) / len(held), abs=1e-5)
    best = [sum(sorted(attention_at(kept[w][2], p))[-topk:]) for w, p in queries]
    recent = [sum(attention_at(kept[w][2], p)[-topk:]) for w, p in queries]
    assert report.best[0][2] == pytest.approx(sum(best) / len(best), abs=1e-5)
    assert report.recent[0][2] == pytest.approx(sum(recent) / len(recent), abs=1e-5)
    assert report.random[0] == pytest.approx(sum(topk / (p + 1) for _, p in queries) / len(queries))
    assert report.own(3) == report.recall[0][3][3] and report.inherited(3) == report.recall[0][3][2]


def test_ranges_add_up_to_the_whole(full_model: GlmMoeDsa, windows: Tensor) -> None:
    report = measure_overlap(full_model, windows, queries=1000)
    assert len(report.edges) == RANGES + 1 and report.edges[0] == 8 and report.edges[-1] == 40
    parts = [n * report.overlap[i + 1][4][1] for i, n in enumerate(report.counts[1:])]
    assert sum(parts) / report.counts[0] == pytest.approx(report.overlap[0][4][1])


def test_shared_layers_show_what_they_inherit(sharing_model: GlmMoeDsa, windows: Tensor) -> None:
    report = measure_overlap(sharing_model, windows)
    assert len(report.overlap[0]) == 3 and len(report.recall[0]) == 6 and len(report.health) == 3
    assert report.own(4) is None and report.inherited(4) == report.recall[0][4][2]
    assert all(report.best[0][layer] >= report.recall[0][layer][0] for layer in range(6))  # type: ignore[operator]


def test_health_by_the_formula(full_model: GlmMoeDsa, windows: Tensor) -> None:
    report = measure_overlap(full_model, windows[:1], queries=1000)
    record = records(full_model, windows[0])[1]
    assert record.index is not None
    kl, shares = 0.0, torch.zeros(2, dtype=torch.float64)
    for p in range(8, 40):
        dots = (record.index.q[p].double() @ record.index.keys[: p + 1].double().T).relu()
        parts = record.index.weights[p].double()[:, None] * dots
        log_q = parts.sum(0).log_softmax(-1)
        target = torch.tensor(attention_at(record, p), dtype=torch.float64)
        kl += float((torch.xlogy(target, target) - target * log_q).sum())
        shares += parts.abs().sum(1) / parts.abs().sum()
    assert report.health[1].kl == pytest.approx(kl / 32, abs=1e-4)
    assert report.health[1].share == pytest.approx((shares / 32).tolist(), abs=1e-5)
    assert report.health[1].attention_entropy > 0 and report.health[1].margin >= 0


def test_dead_heads_and_ties_are_seen(full_config, windows: Tensor) -> None:  # type: ignore[no-untyped-def]
    model = noisy(full_config)
    with torch.no_grad():
        model.layers[2].self_attn.indexer.weights_proj.weight[0] = 0.0
        model.layers[3].self_attn.indexer.weights_proj.weight.zero_()
    report = measure_overlap(model, windows)
    assert report.health[2].dead_heads == (0,) and report.health[1].dead_heads == ()
    all_zero = report.health[3]
    assert all_zero.ties == 1.0 and all_zero.zeros == 1.0 and all_zero.margin == 0.0


def test_stopped_work_goes_on_to_the_same_figures(full_model: GlmMoeDsa, windows: Tensor, tmp_path: Path) -> None:
    whole = measure_overlap(full_model, windows, queries=16)
    request = {"model": "x"}

    def stop(done: int, total: int) -> None:
        if done >= 80:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_overlap(full_model, windows, queries=16, state=StateFile(tmp_path / "s.json", request), progress=stop)
    kept = StateFile(tmp_path / "s.json", request)
    assert kept.found["40"]["windows"] == 2
    seen: list[int] = []
    again = measure_overlap(full_model, windows, queries=16, state=kept, progress=lambda done, _: seen.append(done))
    assert seen == [80, 120]
    assert again == whole
    with pytest.raises(ValueError, match="model was 'x', is now 'y'"):
        StateFile(tmp_path / "s.json", {"model": "y"})


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(ValueError, match="does not keep such work"):
        StateFile(tmp_path / "s.json", {})


def test_queries_are_spread_evenly() -> None:
    assert sample_queries(40, 8, 100, 0.9).tolist() == list(range(8, 40))
    some = sample_queries(1000, 100, 9, 0.5)
    assert some.tolist() == [150, 250, 350, 450, 550, 650, 750, 850, 950]


def test_windows_are_the_text_itself() -> None:
    tokenizer = train_bpe(["abc def\n"] * 3, 300)
    documents = [Document(name=f"{n}.txt", text="abc def\n" * 20) for n in range(4)]
    rows = take_windows(tokenizer, documents, length=16, most=4, wanted=None, seed=0)
    assert rows.shape == (4, 16)
    text = tokenizer.decode(rows[0].tolist())
    assert any(text in document.headed for document in documents)
    assert torch.equal(rows[:2], take_windows(tokenizer, documents, length=16, most=8, wanted=2, seed=0))
    with pytest.raises(ValueError, match=r"enough for \d+ windows of 16 where 1000 are wanted"):
        take_windows(tokenizer, documents, length=16, most=4, wanted=1000, seed=0)
    with pytest.raises(ValueError, match="enough for 0 windows"):
        take_windows(tokenizer, documents, length=10**6, most=4, wanted=None, seed=0)
    with pytest.raises(ValueError, match="--windows is 0"):
        take_windows(tokenizer, documents, length=16, most=4, wanted=0, seed=0)


@pytest.mark.parametrize(("length", "words"), [(8, "nothing is chosen"), (5000, "the model's context")])
def test_lengths_that_say_nothing_are_refused(full_model: GlmMoeDsa, length: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_window(full_model.config, length)


def test_an_explanation_has_what_the_report_counts(sharing_model: GlmMoeDsa, windows: Tensor) -> None:
    found = explain(sharing_model, windows[0], 30)
    record = records(sharing_model, windows[0])
    assert [group.full for group in found.groups] == [0, 1, 2] and len(found.tokens) == 31
    last = found.groups[2]
    assert [layer.layer for layer in last.layers] == [2, 3, 4, 5]
    assert list(last.chosen) == record[2].selection.positions[30 - 8].tolist()
    paid = attention_at(record[4], 30)
    assert last.layers[2].attention == pytest.approx([paid[s] for s in last.chosen], abs=1e-5)
    assert last.layers[2].held == pytest.approx(sum(paid[s] for s in last.chosen), abs=1e-5)
    assert min(last.scores) >= last.threshold
    assert len(last.top(3)) == 3
    with pytest.raises(ValueError, match="attends to all 4 tokens; give a position from 8 to 39"):
        explain(sharing_model, windows[0], 3)
    with pytest.raises(ValueError, match="the text ends before"):
        explain(sharing_model, windows[0], 40)


def test_reports_are_plain_values(full_model: GlmMoeDsa, windows: Tensor) -> None:
    from indexshare.sharing.page import report_facts

    report = measure_overlap(full_model, windows)
    assert isinstance(report, OverlapReport)
    facts = json.loads(json.dumps(report_facts(report)))
    assert facts["pattern"] == "FFFFFF" and facts["full"] == [0, 1, 2, 3, 4, 5]
    assert facts["recall"][0][0][1] is None


def test_other_kinds_of_attention_are_refused() -> None:
    attention = GroupedAttention(kv_heads=2, head_dim=12)
    whole = Variant(attention=attention, selection=Everything())
    config = preset("tiny").replace(num_attention_heads=16, variant=Variant(attention=attention))
    dense = config.replace(variant=whole, num_nextn_predict_layers=0, indexer_types=("full",) * 6)
    with pytest.raises(ValueError, match="attends to everything and has no indexers"):
        check_window(dense, 40)
    grouped = GlmMoeDsa(config).initialise(0).eval()
    with pytest.raises(ValueError, match="latent attention"):
        measure_overlap(grouped, torch.zeros(1, 40, dtype=torch.int64))
