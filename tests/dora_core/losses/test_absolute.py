"""NCA and APO: arithmetic by hand, the independent reference, identities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dora_core.losses import PreferenceBatch, parse_loss
from tests.dora_core.batches import batch_of, for_all, ragged, same, value
from tests.dora_core.losses.reference import compare_precisions, compare_with_reference

LOG2, LOG3 = math.log(2.0), math.log(3.0)

PARAMETERS: list[dict[str, Any]] = [
    {"name": name} | more for name in ("nca", "apo_zero", "apo_down") for more in ({}, {"beta": 0.6, "pairs": "all"})
]


def test_nca() -> None:
    # β·lr = (log 3, −log 3): −log ¾ − ½ log ¼ − ½ log ¾ = ½·(log 4 + 3·log(4/3))
    loss = {"name": "nca", "beta": 1.0}
    assert value(loss, [[LOG3, -LOG3]], [[1.0, 0.0]]) == pytest.approx((math.log(4.0) + 3 * math.log(4 / 3)) / 2)


def test_the_winner_of_nca_rises_to_a_finite_log_ratio() -> None:
    # σ(s_w) = ⅔ at s_w = log 2; there ℓ → −log ⅔ − ½ log ⅓ = 1.5 log 3 − log 2 as the loser falls
    batch = batch_of([[LOG2, -60.0]], [[1.0, 0.0]])
    policy = batch.policy_logps_BN.requires_grad_()
    lowest = parse_loss({"name": "nca", "beta": 1.0})(batch)
    lowest.sum().backward()
    assert lowest.item() == pytest.approx(1.5 * LOG3 - LOG2)
    assert policy.grad.abs().max().item() < 1e-12


def test_apo_zero() -> None:
    # β·lr = (log 3, −log 4): 1 − ¾ + ⅕ = .45
    assert value({"name": "apo_zero", "beta": 1.0}, [[LOG3, -math.log(4.0)]], [[1.0, 0.0]]) == pytest.approx(0.45)


def test_apo_down() -> None:
    # β·lr = (−log 3, −log 12): ¼ + 1 − σ(log 4) = ¼ + ⅕ = .45
    assert value({"name": "apo_down", "beta": 1.0}, [[-LOG3, -math.log(12.0)]], [[1.0, 0.0]]) == pytest.approx(0.45)


def test_apo_down_lowers_both_responses_and_the_loser_more() -> None:
    batch = batch_of([[0.0, 0.0]], [[1.0, 0.0]])
    policy = batch.policy_logps_BN.requires_grad_()
    parse_loss({"name": "apo_down", "beta": 1.0})(batch).sum().backward()
    # at the reference: ¼ − ¼ = 0 for the winner, ¼ for the loser
    torch.testing.assert_close(policy.grad, torch.tensor([[0.0, 0.25]], dtype=torch.float64))


@for_all(batch=ragged())
def test_apo_zero_is_twice_kto_at_the_reference_point_0(batch: PreferenceBatch) -> None:
    same(parse_loss({"name": "apo_zero", "beta": 0.3})(batch), 2 * parse_loss({"name": "kto", "beta": 0.3})(batch))


@pytest.mark.parametrize(("loss", "expected"), [("nca", 2 * LOG2), ("apo_zero", 1.0), ("apo_down", 1.0)])
def test_offset_at_the_reference(loss: str, expected: float) -> None:
    assert value(loss, [[-3.0, -3.0]], [[1.0, 0.0]], [[-3.0, -3.0]], [[9.0, 4.0]]) == pytest.approx(expected)


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda p: " ".join(map(str, p.values())))
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_equal_the_reference(parameters: dict[str, Any], seed: int) -> None:
    compare_with_reference(parameters, seed)


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda p: " ".join(map(str, p.values())))
def test_float32_agrees_with_float64(parameters: dict[str, Any]) -> None:
    compare_precisions(parameters)
