"""Win rates against arithmetic by hand, brute force and known answers."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dora_core.evaluation import winrate
from dora_core.evaluation.metrics import GroupInterval, Interval, draws, worst_group
from dora_core.evaluation.winrate import by_group, by_length, outcomes, sign_test, win_rate, win_tie_lose

BOOT = {"samples": 500, "confidence": 0.95, "seed": 0}
NAN = math.nan


def length_controlled(*args: np.ndarray, **options: Any) -> Interval:
    return by_length(*args, **options).length_controlled


def test_win_tie_lose_by_hand() -> None:
    """Prompt 1, (1, 0) against (0, 0): 1 wins twice, 0 ties twice. Prompt 2, (−1, .3) against (.1 + .2, 2): .3 ties once, the rest lose."""
    shares = win_tie_lose(np.array([[1.0, 0.0], [-1.0, 0.3]]), np.array([[0.0, 0.0], [0.1 + 0.2, 2.0]]))
    assert shares.tolist() == [[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]]
    assert win_rate(shares).tolist() == [0.75, 0.125]


@given(st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_win_rates_of_two_sides_sum_to_one(policy: list[list[int]], seed: int) -> None:
    ours = np.array(policy, dtype=float)
    theirs = np.random.default_rng(seed).integers(-3, 3, (len(ours), 3)).astype(float)
    forth, back = win_tie_lose(ours, theirs), win_tie_lose(theirs, ours)
    assert forth.sum(axis=1) == pytest.approx(1.0)
    assert win_rate(forth) + win_rate(back) == pytest.approx(1.0)


def test_a_missing_score_takes_its_pairs_with_it() -> None:
    shares = win_tie_lose(np.array([[1.0, NAN], [NAN, NAN], [1.0, 2.0]]), np.array([[0.0, 1.0], [0.0, 1.0], [NAN, 1.5]]))
    assert shares[0].tolist() == [0.5, 0.5, 0.0], "1 against 0 and 1; nothing against NaN"
    assert np.isnan(shares[1]).all()
    assert shares[2].tolist() == [0.5, 0.0, 0.5], "1 and 2 against 1.5"


SCORES = st.lists(st.lists(st.sampled_from([NAN, 0.0, 0.5, 1.0]), min_size=3, max_size=3), min_size=2, max_size=4)


@given(SCORES, st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_win_tie_lose_is_the_count_over_all_pairs(policy: list[list[float]], seed: int) -> None:
    theirs = np.random.default_rng(seed).choice([NAN, 0.0, 0.5, 1.0], (len(policy), 2))
    for row, shares in enumerate(win_tie_lose(np.array(policy), theirs)):
        pairs = [(a, b) for a, b in product(policy[row], theirs[row]) if not (math.isnan(a) or math.isnan(b))]
        expected = [sum(a > b for a, b in pairs), sum(a == b for a, b in pairs), sum(a < b for a, b in pairs)]
        assert np.isnan(shares).all() if not pairs else shares == pytest.approx(np.array(expected) / len(pairs))


# ------------------------------------------------------------------------------------------------------------ sign test


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [
        (3, 0, 0.25),  # 2 · ½³
        (8, 2, 112 / 1024),  # 2 · (1 + 10 + 45) / 2¹⁰
        (5, 5, 1.0),
        (0, 0, 1.0),
        (60, 40, 0.0568879),  # binom.test(60, 100) of R
    ],
)
def test_sign_test_is_the_binomial_one(won: int, lost: int, p: float) -> None:
    outcome = np.array([1.0] * won + [0.25] * lost + [0.5] * 7)
    assert sign_test(outcome, np.arange(len(outcome))) == pytest.approx(p, rel=1e-5)
    assert sign_test(1 - outcome, np.arange(len(outcome))) == pytest.approx(p, rel=1e-5)


def test_sign_test_counts_a_prompt_once() -> None:
    """Two records of one prompt, won by .3 and lost by .2, are one prompt won."""
    assert sign_test(np.array([0.8, 0.3, 1.0, 1.0]), np.array([0, 0, 1, 2])) == pytest.approx(0.25)


def test_sign_test_with_many_prompts_is_the_normal_one() -> None:
    outcome = np.repeat([1.0, 0.0], [50_500, 49_500])
    z = (1000 - 1) / math.sqrt(100_000)
    assert sign_test(outcome, np.arange(100_000)) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)


# --------------------------------------------------------------------------------------------------------------- groups


def test_groups_and_the_worst_of_them() -> None:
    shares = np.array([[1.0, 0, 0]] * 30 + [[0, 1.0, 0]] * 25 + [[0, 0, 1.0]] * 5)
    group, prompt = np.repeat(["a", "b", "few"], [30, 25, 5]), np.arange(60)
    found = by_group(shares, group, prompt, **BOOT)
    assert {name: g.win_rate.value for name, g in found.items()} == {"a": 1.0, "b": 0.5, "few": 0.0}
    assert found["b"].tie == Interval(value=1.0, low=1.0, high=1.0, n=25)
    rates = {"source": {name: g.win_rate for name, g in found.items()}}
    worst = worst_group(rates, min_group=20)
    assert worst == GroupInterval(by="source", name="b", value=0.5, low=0.5, high=0.5, n=25)
    assert worst_group(rates, min_group=1).name == "few"
    assert worst_group(rates, min_group=30) is None, "a single group is worse than none"


def test_intervals_cover_the_truth() -> None:
    """40 prompts of 3 × 3 pairs with a prompt effect, 200 times: 93 % to 97 % would be 200 · .02 = 4 trials around nominal."""
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        effect = rng.normal(0.3, 1.0, (40, 1))
        shares = win_tie_lose(effect + rng.normal(0, 1, (40, 3)), rng.normal(0, 1, (40, 3)))
        found = outcomes(shares, np.arange(40), samples=200, confidence=0.95, seed=trial).win_rate
        hits += found.low <= 0.5 * math.erfc(-0.3 / math.sqrt(3) / math.sqrt(2)) <= found.high
    assert 0.9 <= hits / 200 <= 0.98


# ------------------------------------------------------------------------------------------------------ control for length


def paired(outcome_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of one sample each whose comparison has these outcomes (1, ½, 0)."""
    return outcome_R[:, None], np.full((len(outcome_R), 1), 0.5)


def judged_by_length(records: int, advantage: float) -> tuple[np.ndarray, ...]:
    """A judge to whom only length matters, and a policy whose answers are longer by ``advantage`` standard deviations."""
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(100 + 20 * advantage, 20, (records, 2)), rng.normal(100, 20, (records, 2))
    score = rng.logistic(0, 10, (records, 2))
    return ours + score, theirs - score, ours, theirs


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_what_only_length_decides_is_a_draw_at_equal_length(advantage: float) -> None:
    policy, opponent, ours, theirs = judged_by_length(400, advantage)
    raw = win_rate(win_tie_lose(policy, opponent)).mean()
    assert abs(raw - 0.5) > 0.15
    controlled = length_controlled(policy, opponent, ours, theirs, np.arange(400), **BOOT)
    assert controlled.value == pytest.approx(0.5, abs=0.05)
    assert controlled.low < 0.5 < controlled.high


def test_a_judge_that_reads_nothing_but_length_is_a_draw_too() -> None:
    """Outcomes that length separates perfectly: the slope has no finite optimum without the ridge."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(120, 20, (400, 1)), rng.normal(100, 20, (400, 1))
    controlled = length_controlled(ours, theirs, ours, theirs, np.arange(400), **BOOT)
    raw = win_rate(win_tie_lose(ours, theirs)).mean()
    assert controlled.low < 0.5 < controlled.high < raw


def test_without_a_difference_in_length_it_is_the_win_rate() -> None:
    outcome = np.array([1.0] * 30 + [0.5] * 10 + [0.0] * 20)
    same = np.full((60, 1), 7.0)
    found = length_controlled(*paired(outcome), same, same, np.arange(60), **BOOT)
    plain = outcomes(win_tie_lose(*paired(outcome)), np.arange(60), **BOOT).win_rate
    assert found.value == pytest.approx(35 / 60, abs=2e-3)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.01)


def test_the_fit_solves_the_equations_of_the_logistic_regression() -> None:
    """At the optimum Σ (y − p) = 0 and Σ (y − p)·x = 0: found here by bisection in φ inside bisection in θ, on (win, length) by hand."""
    rng = np.random.default_rng(3)
    longer = rng.integers(-9, 10, 80).astype(float)
    outcome = np.select([rng.random(80) < 1 / (1 + np.exp(-0.4 - 0.1 * longer)), rng.random(80) < 0.3], [1.0, 0.5], 0.0)
    x = np.tanh(longer / longer.std())

    def root(f, low=-20.0, high=20.0) -> float:
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if f(middle) > 0 else (low, middle)
        return low

    def residual(theta: float, phi: float) -> np.ndarray:
        return outcome - 1 / (1 + np.exp(-theta - phi * x))

    def theta_of(phi: float) -> float:
        return root(lambda theta: residual(theta, phi).sum())

    phi = root(lambda phi: (residual(theta_of(phi), phi) * x).sum())
    found = length_controlled(*paired(outcome), longer[:, None], np.zeros((80, 1)), np.arange(80), **BOOT)
    assert found.value == pytest.approx(1 / (1 + math.exp(-theta_of(phi))), abs=2e-3)


def test_the_interval_is_that_of_whole_refits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few prompts, most of them won: where a shortcut would show. In blocks, as with many pairs."""
    monkeypatch.setattr(winrate, "BLOCK", 7 * 60 * 4)  # seven resamples at a time
    policy, opponent, ours, theirs = judged_by_length(60, 2.0)
    found = length_controlled(policy, opponent, ours, theirs, np.arange(60), samples=40, confidence=0.95, seed=0)
    rows = draws(60, 40, seed=0)
    won = (policy[rows][..., :, None] > opponent[rows][..., None, :]).reshape(40, -1)
    longer = ours[:, :, None] - theirs[:, None, :]
    x = np.tanh(longer / longer.std())[rows].reshape(40, -1)
    theta, phi = np.zeros((40, 1)), np.zeros((40, 1))
    for _ in range(1000):  # plain gradient ascent; a prompt's four pairs weigh ¼ each
        residual = (won - 1 / (1 + np.exp(-theta - phi * x))) / 4
        theta += 0.1 * (residual.sum(axis=1, keepdims=True) - winrate.RIDGE * theta)
        phi += 0.1 * ((residual * x).sum(axis=1, keepdims=True) - winrate.RIDGE * phi)
    assert (found.low, found.high) == pytest.approx(np.quantile(1 / (1 + np.exp(-theta)), [0.025, 0.975]), abs=1e-4)


def test_prompts_weigh_the_same_however_many_pairs_they_have() -> None:
    """One prompt with three winning samples and one with one losing: ½, as in the plain win rate."""
    policy, opponent = np.array([[1.0, 1.0, 1.0], [0.0, NAN, NAN]]), np.array([[0.5], [0.5]])
    lengths = np.full((2, 3), 5.0), np.full((2, 1), 5.0)
    assert length_controlled(policy, opponent, *lengths, np.arange(2), **BOOT).value == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------------- pairs of similar length


def test_pairs_of_near_equal_length_by_hand() -> None:
    """Lengths 20 against 18, 19, 30 and 40: |2| ≤ .1 · 19 fails, |1| ≤ .1 · 19.5 holds; prompt 2 has 10 against 10 and 11, both near.

    Near pairs: prompt 1 one loss; prompt 2 a win and a tie, ¾; their mean is 3/8. Longer: ½ of prompt 1's pairs; prompt 2 has ½ and 0.
    """
    policy, theirs = np.array([[0.0], [1.0]]), np.array([[-1.0, 2.0, -1.0, -1.0], [0.0, 1.0, NAN, NAN]])
    ours_length, their_length = np.array([[20.0], [10.0]]), np.array([[18.0, 19.0, 30.0, 40.0], [10.0, 11.0, NAN, NAN]])
    found = by_length(policy, theirs, ours_length, their_length, np.arange(2), **BOOT)
    assert found.near_length is not None and (found.near_length.value, found.near_length.n) == (0.375, 2)
    assert found.longer == pytest.approx((0.5 + 0.25) / 2) and not found.is_extrapolated


def test_a_side_that_is_nearly_always_longer_leaves_equal_length_without_data() -> None:
    """19 of 20 longer: 5 % on the other side are just enough; 20 of 20 are not, and no pair is of near-equal length."""
    outcome, theirs = np.ones(20), np.full((20, 1), 10.0)
    lengths = np.array([20.0] * 19 + [5.0])[:, None]
    assert not by_length(*paired(outcome), lengths, theirs, np.arange(20), **BOOT).is_extrapolated
    found = by_length(*paired(outcome), np.full((20, 1), 20.0), theirs, np.arange(20), **BOOT)
    assert (found.longer, found.near_length, found.is_extrapolated) == (1.0, None, True)
    assert by_length(*paired(outcome), np.full((20, 1), 4.0), theirs, np.arange(20), **BOOT).is_extrapolated
