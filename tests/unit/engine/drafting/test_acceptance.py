"""The acceptance rules: they equal the reference, and the law of what is emitted is the target's, exactly."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from indexshare.engine.drafting import acceptance, acceptance_reference
from indexshare.engine.drafting.acceptance import ACCEPT, DRAFT, Proposal, draft_token, law, settle, verify
from indexshare.engine.params import SamplingParams
from indexshare.engine.penalties import SeenTokens
from indexshare.engine.sampler import Draw, sample, uniform
from indexshare.engine.sampler_reference import penalised, probabilities
from tests.tolerance import TOL

Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
PLAIN = SamplingParams(seed=0)


def random_laws(count: int, vocab: int, seed: int) -> Tensor:
    """Laws float64 `[count, V]`, some of them with zeros, some with everything on one token."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(count, vocab, generator=generator, dtype=torch.float64) ** 3
    weights[::3] *= torch.rand(len(weights[::3]), vocab, generator=generator) < 0.5
    weights[weights.sum(1) == 0] = 1.0
    weights[5::7] = torch.eye(vocab, dtype=torch.float64)[torch.arange(len(weights[5::7])) % vocab]
    return weights / weights.sum(1, keepdim=True)


def test_the_reference_emits_the_target_law_whatever_the_draft() -> None:
    target, draft = random_laws(300, 5, 1), random_laws(300, 5, 2)
    for p, q in zip(target.tolist(), draft.tolist(), strict=True):
        assert acceptance_reference.emitted(p, q) == pytest.approx(p, abs=1e-14)


def test_settling_equals_the_reference() -> None:
    target, draft, cases = random_laws(2000, 7, 3), random_laws(2000, 7, 4), 2000
    tokens = torch.multinomial(draft, 1)[:, 0]
    accept, redraw = torch.rand(cases, dtype=torch.float64), torch.rand(cases, dtype=torch.float64)
    stays, other = settle(target, draft, tokens, accept, redraw)
    found = torch.where(stays, tokens, other).tolist()
    rows = zip(target.tolist(), draft.tolist(), tokens.tolist(), accept.tolist(), redraw.tolist(), strict=True)
    assert found == [acceptance_reference.settle(*row) for row in rows]
    assert 0.2 < float(stays.double().mean()) < 0.8


def test_what_is_emitted_has_a_chance() -> None:
    """A number next to 1 whose product is rounded up to the total leads to no token of probability 0."""
    target = torch.tensor([[0.3, 0.7, 0.0, 0.0]], dtype=torch.float64)
    draft = torch.tensor([[0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    almost = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    stays, other = settle(target, draft, torch.tensor([2]), almost, almost)
    assert (bool(stays), int(other)) == (False, 1)
    same, rest = settle(target, target, torch.tensor([1]), almost, almost)
    assert bool(same)
    assert int(rest) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.6, "top_p": 0.9},
        {"top_k": 4, "min_p": 0.1, "temperature": 1.7},
        {"temperature": 0.0},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2, "temperature": 0.8},
    ],
    ids=str,
)
def test_laws_are_those_of_the_sampler(settings: dict) -> None:
    params, prompt, made = SamplingParams(**settings), [1, 4, 4], [2, 2]
    seen = None
    if params.penalised:
        seen = SeenTokens(params, len(prompt))
        seen.update(prompt + made)
    for seed in range(5):
        logits = torch.randn(9, generator=torch.Generator().manual_seed(seed)) * 2
        values = penalised(logits.tolist(), params, prompt, made) if params.penalised else logits.tolist()
        expected = torch.tensor(probabilities(values, params), dtype=torch.float64)
        found = law(logits, Draw(params, 0, 5, seen))
        torch.testing.assert_close(found, expected, **TOL["sampling probabilities", "float64"].bounds)


# Every path through `verify` over a tiny vocabulary: a number is asked for, and the path branches over a grid of
# equally likely values, on which all thresholds of these laws fall between two values.
FIRST = torch.tensor([3, 1, 4], dtype=torch.float64) / 8
SECOND = torch.tensor([[2, 5, 1], [6, 1, 1], [1, 3, 4]], dtype=torch.float64) / 8
DRAFT_FIRST = torch.tensor([1, 5, 2], dtype=torch.float64) / 8
DRAFT_SECOND = torch.tensor([[2, 1, 5], [2, 1, 5], [5, 1, 2]], dtype=torch.float64) / 8
GRID = {ACCEPT: 5, 0: 8}


class NeedsNumberError(Exception):
    """A path is not complete: it asks for a number of this stream."""


def paths(run: Callable[[Callable[[int, int, int], float]], None]) -> Iterator[tuple[float, dict]]:
    """Weight and numbers of every complete path of `run`, which is called with the source of its numbers."""
    left: list[tuple[float, dict[tuple[int, int], float]]] = [(1.0, {})]
    while left:
        weight, known = left.pop()

        def number(seed: int, position: int, stream: int = 0, *, known: dict = known) -> float:
            if (position, stream) not in known:
                raise NeedsNumberError(position, stream)
            return float(known[position, stream])

        try:
            run(number)
        except NeedsNumberError as asked:
            key = asked.args
            size = GRID[key[1]]
            left += [(weight / size, {**known, key: (i + 0.5) / size}) for i in range(size)]
            continue
        yield weight, known


def joint_law(monkeypatch: pytest.MonkeyPatch, *, named: bool = False) -> Tensor:
    """The joint law `[3, 3]` of the first two tokens that drafting emits, by all paths of the engine's own functions.

    A round has two drafts. Where it emits one token, the second is one of plain decoding.
    """
    found = torch.zeros(3, 3, dtype=torch.float64)
    for one, two in itertools.product(range(3), range(3)):
        result = list[list[int]]()
        laws = [DRAFT_FIRST, DRAFT_SECOND[one]]
        proposal = Proposal([one, two], None if named else laws)

        def run(number: Callable[..., float], proposal: Proposal = proposal, result: list = result) -> None:
            monkeypatch.setattr(acceptance, "uniform", number)
            monkeypatch.setattr("indexshare.engine.sampler.uniform", number)
            logits = torch.stack([FIRST, SECOND[proposal.tokens[0]]]).log().float()
            taken = verify(logits, proposal, lambda tokens: Draw(PLAIN, 0, len(tokens)))
            result.append(taken)

        chance = float(laws[0][one] * laws[1][two])  # that a drafter which draws has these drafts
        for weight, _ in paths(run):
            first, *rest = result.pop()
            found[first] += chance * weight * (torch.eye(3, dtype=torch.float64)[rest[0]] if rest else SECOND[first])
    return found


def test_drafts_are_drawn_from_their_law(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = torch.zeros(3, dtype=torch.float64)
    for n in range(16):
        monkeypatch.setattr(acceptance, "uniform", lambda seed, position, stream, n=n: (n + 0.5) / 16)
        counts[draft_token(DRAFT_FIRST, Draw(PLAIN, 0, 0))] += 1 / 16
    assert torch.equal(counts, DRAFT_FIRST)


@pytest.mark.parametrize("named", [False, True], ids=["drawn", "named"])
def test_the_joint_law_of_two_tokens_is_exact(monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    found = joint_law(monkeypatch, named=named)
    torch.testing.assert_close(found, FIRST[:, None] * SECOND, **TOL["operation", "float64"].bounds)


def redraws_from_the_target(p: Tensor, q: Tensor, tokens: Tensor, accept: Tensor, redraw: Tensor) -> tuple:
    """A broken rule: what takes a rejected draft's place is drawn from p."""
    return settle(p, q, tokens, accept, redraw)[0], acceptance._inverted(p, redraw)


def always_accepts_likely_ones(p: Tensor, q: Tensor, tokens: Tensor, accept: Tensor, redraw: Tensor) -> tuple:
    """Another: a draft stays with probability p(y)."""
    stays, other = settle(p, q, tokens, accept, redraw)
    return accept < p.gather(1, tokens[:, None])[:, 0], torch.where(stays, acceptance._inverted(p, redraw), other)


BROKEN = [redraws_from_the_target, always_accepts_likely_ones]


@pytest.mark.parametrize("rule", [BROKEN[0], pytest.param(BROKEN[1], marks=pytest.mark.slow)])
def test_a_broken_rule_has_another_joint_law(monkeypatch: pytest.MonkeyPatch, rule: Rule) -> None:
    monkeypatch.setattr(acceptance, "settle", rule)
    assert not torch.allclose(joint_law(monkeypatch), FIRST[:, None] * SECOND, atol=1e-3)


def test_named_drafts_give_the_tokens_of_plain_decoding() -> None:
    """Draft or no draft, each place has the token that plain decoding draws there."""
    generator = torch.Generator().manual_seed(8)
    for seed in range(200):
        params = SamplingParams(temperature=(0.0, 1.0)[seed % 2], top_k=3, seed=seed)
        logits = torch.randn(5, 6, generator=generator)
        plain = [sample(logits[n : n + 1], [Draw(params, seed, 10 + n)])[0] for n in range(5)]
        drafts = [t if n < seed % 5 else (t + 1) % 6 for n, t in enumerate(plain[:4])]
        taken = verify(logits, Proposal(drafts), lambda tokens, p=params: Draw(p, p.seed or 0, 10 + len(tokens)))
        assert taken == plain[: seed % 5 + 1]


# Chi-square over many seeds, mismatched drafts, temperatures and truncations.
TEMPERATURES = (0.3, 1.0, 2.0)
TRUNCATIONS: tuple[dict, ...] = ({}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.15})
MISMATCHES = {"near": 0.3, "far": 2.0, "reversed": -1.0}
VOCAB = 12


def laws_of_case(temperature: float, truncation: dict, mismatch: str) -> tuple[Tensor, Tensor]:
    """Target and draft laws `[V]`; the draft has its own logits under the same filters."""
    params = SamplingParams(temperature=temperature, **truncation)
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1)) * 1.5
    noise = torch.randn(VOCAB, generator=torch.Generator().manual_seed(2))
    scale = MISMATCHES[mismatch]
    other = logits + scale * noise if scale > 0 else logits.flip(0)
    return law(logits, Draw(params, 0, 0)), law(other, Draw(params, 0, 0))


def chi_square(rule: Rule, target: Tensor, draft: Tensor, draws: int) -> float:
    """How far the counts of emitted tokens are from the target's law, as a standard normal deviate."""
    numbers = [
        torch.tensor([uniform(seed, 7, stream) for seed in range(draws)], dtype=torch.float64)
        for stream in (DRAFT, ACCEPT, 0)
    ]
    tokens = acceptance._inverted(draft.expand(draws, -1), numbers[0])
    stays, other = rule(target.expand(draws, -1), draft.expand(draws, -1), tokens, *numbers[1:])
    counts = torch.bincount(torch.where(stays, tokens, other), minlength=VOCAB).double()
    support = target > 0
    assert int(counts[support].sum()) == draws, "a token without a chance was emitted"
    if int(support.sum()) == 1:
        return 0.0
    expected = draws * target[support]
    value, freedom = float(((counts[support] - expected) ** 2 / expected).sum()), int(support.sum()) - 1
    # Wilson-Hilferty: the cube root of chi-square per degree of freedom is nearly normal; 3.1 is 1 in 1000.
    spread = 2 / (9 * freedom)
    return ((value / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


CASES = list(itertools.product(TEMPERATURES, TRUNCATIONS, MISMATCHES))


@pytest.mark.parametrize(("temperature", "truncation", "mismatch"), CASES[::5], ids=str)
def test_the_law_of_emitted_tokens(temperature: float, truncation: dict, mismatch: str) -> None:
    assert chi_square(settle, *laws_of_case(temperature, truncation, mismatch), 20_000) < 3.1


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "truncation", "mismatch"), CASES, ids=str)
def test_the_law_of_many_emitted_tokens(temperature: float, truncation: dict, mismatch: str) -> None:
    assert chi_square(settle, *laws_of_case(temperature, truncation, mismatch), 200_000) < 3.1


@pytest.mark.parametrize("rule", BROKEN)
def test_the_same_test_finds_a_broken_rule(rule: Rule) -> None:
    assert chi_square(rule, *laws_of_case(1.0, {}, "far"), 20_000) > 10


def test_a_later_round_is_not_bound_by_a_rejected_one() -> None:
    """A position is drafted again with the same number after a rejection; the two tokens' joint law is still right."""
    draws, first, second = 40_000, FIRST, SECOND
    counts = torch.zeros(3, 3, dtype=torch.float64)
    numbers = {
        (position, stream): torch.tensor([uniform(n, position, stream) for n in range(draws)], dtype=torch.float64)
        for position in (0, 1)
        for stream in (DRAFT, ACCEPT, 0)
    }

    def settled(p: Tensor, q: Tensor, position: int) -> tuple[Tensor, Tensor]:
        tokens = acceptance._inverted(q, numbers[position, DRAFT])
        stays, other = settle(p, q, tokens, numbers[position, ACCEPT], numbers[position, 0])
        return tokens, torch.where(stays, tokens, other)

    _, one = settled(first.expand(draws, -1), DRAFT_FIRST.expand(draws, -1), 0)
    # Accepted or not, position 1 is drafted (again) behind what position 0 got, with position 1's own numbers.
    _, two = settled(second[one], DRAFT_SECOND[one], 1)
    counts.index_put_((one, two), torch.ones(draws, dtype=torch.float64), accumulate=True)
    expected = draws * first[:, None] * second
    assert float(((counts - expected) ** 2 / expected).sum()) < 26.1  # 1 in 1000 with 8 degrees of freedom


def test_accepted_share_is_one_minus_total_variation() -> None:
    target, draft = laws_of_case(1.0, {}, "far")
    overlap, draws = float(torch.minimum(target, draft).sum()), 20_000
    tokens = acceptance._inverted(draft.expand(draws, -1), torch.rand(draws, dtype=torch.float64))
    numbers = torch.rand(2, draws, dtype=torch.float64)
    stays, _ = settle(target.expand(draws, -1), draft.expand(draws, -1), tokens, *numbers)
    assert abs(float(stays.double().mean()) - overlap) < 4 * math.sqrt(overlap * (1 - overlap) / draws)


def test_the_reference_verifies_in_the_same_order() -> None:
    laws: Sequence[Sequence[float]] = SECOND.tolist()
    numbers = {"accept": 0.99, "draw": 0.1}
    taken = acceptance_reference.verify(
        lambda tokens: laws[tokens[-1]] if tokens else FIRST.tolist(), [1, 0], [DRAFT_FIRST.tolist()] * 2,
        lambda place, kind: numbers[kind],
    )  # fmt: skip
    # 0.99 * 1/4 >= 1/8: rejected; what is left of p is (1, 0, 2) / 8, and 0.1 is in its first part.
    assert taken == [0] or taken == [2]
