"""Losses on whole lists: arithmetic by hand, the independent reference, identities with pairwise losses."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from dora_core.losses import PreferenceBatch, parse_loss
from tests.dora_core.batches import NAN, batch_of, for_all, ragged, same, value
from tests.dora_core.losses.reference import compare_precisions, compare_with_reference

LOG2 = math.log(2.0)

PARAMETERS: list[dict[str, Any]] = [
    {"name": "dpo_pl"},
    {"name": "lire"},
    {"name": "rrhf"},
    {"name": "pro"},
    {"name": "dpo_pl", "beta": 0.9},
    {"name": "lire", "temperature": 0.8},
    {"name": "rrhf", "sft_weight": 0.2},
    {"name": "pro", "sft_weight": 0.0},
    {"name": "d2o"},
    {"name": "d2o", "beta": 0.6, "alpha": 0.25},
]


def test_plackett_luce() -> None:
    # β·lr best first = (1, 0, −1): log(e + 1 + 1/e) − 1  +  log(1 + 1/e) − 0  +  0 = 0.407606 + 0.313262 = 0.720868
    expected = 0.40760596444438 + 0.31326168751822
    assert value({"name": "dpo_pl", "beta": 1.0}, [[-1.0, 1.0, 0.0]], [[1.0, 3.0, 2.0]]) == pytest.approx(expected)


def test_plackett_luce_with_a_tie() -> None:
    # β·lr = (log 2, 0, 0), rewards (2, 1, 1): the best against both: log(2 + 1 + 1) − log 2 = log 2; the tied two beat no other: 0
    assert value({"name": "dpo_pl", "beta": 1.0}, [[LOG2, 0.0, 0.0]], [[2.0, 1.0, 1.0]]) == pytest.approx(LOG2)


def test_plackett_luce_of_an_uncertain_label_is_that_of_the_order_or_its_reverse() -> None:
    # β·lr best first = (1, 0, −1): ℓ = .720868 as above. In the reverse order, scores best first = (−1, 0, 1):
    # log(1/e + 1 + e) + 1 + log(1 + e) − 0 = 2.407606 + 1.313262 = 3.720868. q = ¾: .75·.720868 + .25·3.720868 = 1.470868
    q_B = torch.tensor([0.75], dtype=torch.float64)
    batch = dataclasses.replace(batch_of([[-1.0, 1.0, 0.0]], [[1.0, 3.0, 2.0]]), label_probability_B=q_B)
    assert parse_loss({"name": "dpo_pl", "beta": 1.0})(batch).item() == pytest.approx(1.4708676520)


def test_lire() -> None:
    # T = 2, log π = (0, −2 log 3): softmax(0, −log 3) = (3/4, 1/4). r = (log 4, 0): softmax = (4/5, 1/5). ℓ = −(0.6 + 0.05) = −0.65
    assert value("lire", [[0.0, -2 * math.log(3.0)]], [[math.log(4.0), 0.0]]) == pytest.approx(-0.65)


def test_lire_leaves_unmeasured_responses_out() -> None:
    assert value("lire", [[0.0, 5.0, -2 * math.log(3.0)]], [[math.log(4.0), NAN, 0.0]]) == pytest.approx(-0.65)


def test_rrhf() -> None:
    # p = (−8/4, −6/6, −15/5) = (−2, −1, −3), rewards (2, 1, 0). Inversions: p_1 − p_0 = 1; p_2 − p_0 = −1 and p_2 − p_1 = −2 are none.
    # ℓ = 1 − 1·(−2) = 3
    assert value("rrhf", [[-8.0, -6.0, -15.0]], [[2.0, 1.0, 0.0]], None, [[4.0, 6.0, 5.0]]) == pytest.approx(3.0)


def test_rrhf_pairs_count_each_and_ties_do_not() -> None:
    # p = (−3, −2, −1), sft 0: rewards (2, 1, 0): 1 + 2 + 1 = 4; rewards (2, 1, 1): 1 + 2 = 3
    loss = {"name": "rrhf", "sft_weight": 0.0}
    logps = [[-12.0, -8.0, -4.0]]
    assert value(loss, logps, [[2.0, 1.0, 0.0]]) == pytest.approx(4.0)
    assert value(loss, logps, [[2.0, 1.0, 1.0]]) == pytest.approx(3.0)


def test_pro() -> None:
    # p = (−1, −2, −1), rewards (3, 2, 0). k = 0: gaps 1 and 3, own weight 3: log(e^−3 + e^(1·−2) + e^(3·−1)) + 3
    #   = log(e^0 + e^1 + e^0) = log(2 + e) = 1.551445
    # k = 1: gap 2, own 2: log(e^−4 + e^−2) + 4 = log(1 + e^2) = 2.126928.   k = 2: nothing below: 0
    # SFT: w = .1, N − 1 = 2: 0.1·4·4 nats (the sum over 4 tokens) = 1.6
    loss = {"name": "pro", "sft_weight": 0.1}
    expected = math.log(2 + math.e) + math.log(1 + math.e**2) + 1.6
    assert value(loss, [[-4.0, -8.0, -4.0]], [[3.0, 2.0, 0.0]]) == pytest.approx(expected)


def test_d2o() -> None:
    # lr = (3, 1, −2), rewards (1, 1, 0): .5·(3 + 1)/2 − .25·(−2) = 1.5: log(1 + e^−1.5) = 0.201413
    assert value({"name": "d2o", "beta": 0.5, "alpha": 0.25}, [[3.0, 1.0, -2.0]], [[1.0, 1.0, 0.0]]) == pytest.approx(0.2014132780)


@for_all(batch=ragged(most=2))
def test_d2o_of_two_is_dpo(batch: PreferenceBatch) -> None:
    same(parse_loss({"name": "d2o", "beta": 0.3, "alpha": 0.3})(batch), parse_loss({"name": "dpo", "beta": 0.3})(batch))


def test_plackett_luce_at_the_reference_is_log_factorial() -> None:
    assert value("dpo_pl", [[0.0] * 5], [[5.0, 4.0, 3.0, 2.0, 1.0]]) == pytest.approx(math.log(math.factorial(5)))


@for_all(batch=ragged(most=2), beta=st.floats(0.01, 5))
def test_plackett_luce_of_two_is_dpo(batch: PreferenceBatch, beta: float) -> None:
    same(parse_loss({"name": "dpo_pl", "beta": beta})(batch), parse_loss({"name": "dpo", "beta": beta})(batch))


@for_all(batch=ragged(most=2))
def test_lire_of_two_far_apart_rewards_is_minus_the_policy_s_choice(batch: PreferenceBatch) -> None:
    """softmax(r) → one-hot: ℓ → −softmax(log π / T) at the winner, which is −e^−dpo of the policy alone at β = 1/T."""
    zeros = torch.zeros_like(batch.reference_logps_BN)
    sharp = PreferenceBatch(batch.policy_logps_BN, zeros, batch.lengths_BN, batch.rewards_BN * 1e3, batch.mask_BN)
    same(parse_loss("lire")(sharp), -(-parse_loss({"name": "dpo", "beta": 0.5})(sharp)).exp())


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("dpo_pl", LOG2),
        ("lire", -0.5),
        ("d2o", LOG2),
    ],
    ids=str,
)
def test_offset_at_the_reference(loss: Any, expected: float) -> None:
    assert value(loss, [[-3.0, -3.0]], [[1.0, 0.0]], [[-3.0, -3.0]], [[9.0, 4.0]]) == pytest.approx(expected)


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda p: " ".join(map(str, p.values())))
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_equal_the_reference(parameters: dict[str, Any], seed: int) -> None:
    compare_with_reference(parameters, seed)


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda p: " ".join(map(str, p.values())))
def test_float32_agrees_with_float64(parameters: dict[str, Any]) -> None:
    compare_precisions(parameters)
