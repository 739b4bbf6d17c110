"""What to label next: values written out by hand, greedy choices against direct computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dora_core.selection.acquisition import RULES, Candidates, GoldenPairs, entropy, random_choice, suggest

RNG = np.random.default_rng(0)


def candidates(difference_ND: Any, **given: Any) -> Candidates:
    """Candidates of different prompts, without labels, about which nothing is known."""
    phi = np.asarray(difference_ND, float)
    n = len(phi)
    columns = {"prompt_N": np.arange(n), "factor_N": np.ones(n), "margin_MN": np.zeros((1, n)), "share_M": np.ones(1)}
    columns |= {"people_N": np.full(n, 0.5), "trust_N": np.full(n, 0.5), "weight_N": np.zeros(n)}
    return Candidates(phi, **(columns | {name: np.asarray(value) for name, value in given.items()}))


def test_disagreement_is_the_information_about_the_member() -> None:
    # p = .9 and .1 with equal shares: H(½) − ½·(H(.9) + H(.1)) = .693147 − .325083; members that agree tell nothing of each other
    logit = np.log(9.0)
    found = candidates(np.ones((2, 1)), margin_MN=[[logit, logit], [-logit, logit]], share_M=[0.5, 0.5]).disagreement_N
    assert found == pytest.approx([0.368064, 0.0], abs=1e-6)
    # shares ¾ and ¼: p̄ = .7, H(.7) = .610864
    assert candidates([[1.0]], margin_MN=[[logit], [-logit]], share_M=[0.75, 0.25]).disagreement_N == pytest.approx([0.285781], abs=1e-6)
    assert entropy(np.array([0.0, 0.5, 1.0])) == pytest.approx([0.0, np.log(2), 0.0])


def test_what_a_synthetic_label_tells_already() -> None:
    # weight·(2q − 1)²: certain, of no value, reversed for certain (as good as certain), 90 % right at half the weight
    found = candidates(np.ones((4, 1)), trust_N=[1.0, 0.5, 0.0, 0.9], weight_N=[1.0, 1.0, 3.0, 0.5]).known_N
    assert found == pytest.approx([1.0, 0.0, 1.0, 0.32])


def test_information_is_the_fall_of_the_margins_variance() -> None:
    # one pair φ = 2 at p = ½: v = ¼, A = 1, T = 4. tr(T/A) = 4 falls to 4/(1 + ¼·4) = 2
    assert suggest(candidates([[2.0]]), 1).gain == pytest.approx([2.0])
    # with ridge 3: 4/3 falls to 4/4
    assert suggest(candidates([[2.0]]), 1, ridge=3.0).gain == pytest.approx([1 / 3])
    # a golden pair ψ = 2 at p = ½ known before: A = 2, T = (4 + 4)/2: 4/2 falls to 4/3
    golden = GoldenPairs(np.array([[2.0]]), np.array([0.5]))
    assert suggest(candidates([[2.0]]), 1, golden=golden).gain == pytest.approx([2 / 3])
    # half of it known (weight ½, trusted): A = 1 + ½·¼·4 = 1.5, c = ⅛: 4/1.5 falls to 4/2
    assert suggest(candidates([[2.0]], weight_N=[0.5], trust_N=[1.0]), 1).gain == pytest.approx([8 / 3 - 2])


def test_every_step_takes_the_largest_fall_computed_directly() -> None:
    n, d = 25, 4
    phi, h, p, q, w = RNG.normal(size=(n, d)), RNG.random(n), RNG.uniform(0.05, 0.95, n), RNG.random(n), RNG.random(n)
    psi, golden_p = RNG.normal(size=(6, d)), RNG.uniform(0.1, 0.9, 6)
    pool = candidates(phi, factor_N=h, people_N=p, trust_N=q, weight_N=w)
    found = suggest(pool, 6, golden=GoldenPairs(psi, golden_p), ridge=0.7)
    known = w * (2 * q - 1) ** 2
    target = (np.einsum("n,ni,nj->ij", h / h.sum(), phi, phi) + psi.T @ psi / 6) / 2
    precision = 0.7 * np.eye(d) + np.einsum("n,ni,nj->ij", known * p * (1 - p), phi, phi)
    precision += np.einsum("n,ni,nj->ij", golden_p * (1 - golden_p), psi, psi)
    taken: list[int] = []
    for _ in range(6):
        after = [
            np.trace(target @ np.linalg.inv(precision + p[i] * (1 - p[i]) * (1 - known[i]) * np.outer(phi[i], phi[i]))) for i in range(n)
        ]
        after = [np.inf if i in taken else value for i, value in enumerate(after)]
        best = int(np.argmin(after))
        assert found.gain[len(taken)] == pytest.approx(np.trace(target @ np.linalg.inv(precision)) - after[best], rel=1e-9)
        precision = precision + p[best] * (1 - p[best]) * (1 - known[best]) * np.outer(phi[best], phi[best])
        taken.append(best)
    assert found.positions.tolist() == taken


@pytest.mark.parametrize("rule", RULES)
def test_near_copies_wait_until_other_directions_were_taken(rule: Any) -> None:
    # 20 copies of the best pair, and two others; for information the copies have the same golden mass together as one of the others
    phi = np.concatenate([np.tile([[3.0, 0.0, 0.0]], (20, 1)), 2.5 * np.eye(3)[1:]])
    spread = np.where(np.arange(22) < 20, 2.0, 1.0)
    mass = np.where(np.arange(22) < 20, 0.05, 1.0) if rule == "information" else spread
    pool = candidates(phi, factor_N=mass, margin_MN=[spread, -spread], share_M=[0.5, 0.5])
    assert set(suggest(pool, 4, rule).positions.tolist()) > {20, 21}


@pytest.mark.parametrize("rule", RULES)
def test_every_prompt_has_its_turn(rule: Any) -> None:
    phi = RNG.normal(size=(12, 6)) * np.array([10.0] * 8 + [0.1] * 4)[:, None]
    prompts = np.array([7] * 8 + [1, 2, 3, 4])
    pool = candidates(phi, prompt_N=prompts, margin_MN=RNG.normal(size=(2, 12)), share_M=[0.5, 0.5])
    order = suggest(pool, 99, rule).positions
    assert sorted(prompts[order[:5]]) == [1, 2, 3, 4, 7] and sorted(order.tolist()) == [*range(12)]


def test_committee_and_uncertainty_read_what_they_are_named_for() -> None:
    phi = np.eye(4)
    pool = candidates(
        phi, factor_N=[1.0, 0.1, 1.0, 1.0], margin_MN=[[3, 3, 0, 0], [-3, -3, 0, 0]], share_M=[0.5, 0.5], trust_N=[1.0, 0.5, 0.5, 1.0]
    )
    assert suggest(pool, 2, "committee").positions.tolist() == [2, 0]  # .693 for trust, .504 for disagreement, .1·1.197 where h is small
    assert suggest(candidates(phi, people_N=[0.9, 0.6, 0.99, 0.2]), 2, "uncertainty").positions.tolist() == [1, 3]


def test_a_label_that_is_known_is_not_asked_for() -> None:
    pool = candidates(np.eye(2) * [[5.0], [1.0]], weight_N=[1.0, 0.0], trust_N=[1.0, 0.5])
    assert suggest(pool, 2).positions.tolist() == [1, 0] and suggest(pool, 2).gain[1] == 0.0


def test_random_pairs_are_of_different_prompts_first() -> None:
    prompts = np.repeat(np.arange(5), 4)
    drawn = random_choice(prompts, 8, np.random.default_rng(1))
    assert sorted(prompts[drawn[:5]]) == [0, 1, 2, 3, 4] and len(set(drawn.tolist())) == 8
    assert drawn.tolist() != random_choice(prompts, 8, np.random.default_rng(2)).tolist()
