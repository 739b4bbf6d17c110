"""SFT, CPO, ORPO and ASFT: arithmetic by hand, the independent reference, likelihoods at both ends."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dora_core.losses import PreferenceBatch, parse_loss
from tests.dora_core.batches import batch_of, for_all, ragged, same, value
from tests.dora_core.losses.reference import compare_precisions, compare_with_reference

LOG2 = math.log(2.0)

PARAMETERS: list[dict[str, Any]] = [
    {"name": "sft"},
    {"name": "cpo"},
    {"name": "orpo"},
    {"name": "asft"},
    {"name": "cpo", "beta": 0.4, "sft_weight": 0.3, "pairs": "all"},
    {"name": "orpo", "beta": 0.7, "pairs": "all"},
    {"name": "asft", "beta": 0.3, "pairs": "all"},
]


def test_sft() -> None:
    # 6 nats over 4 tokens; the other response is not read
    assert value("sft", [[-6.0, -1.0]], [[1.0, 0.0]], None, [[4.0, 2.0]]) == pytest.approx(1.5)


def test_cpo() -> None:
    # β = .1: m = .1·(−2 + 7) = .5: log(1 + e^−.5) = 0.474077; 2 nats over 4 tokens, α = 2: + 1; the reference is not read
    loss = {"name": "cpo", "sft_weight": 2.0}
    assert value(loss, [[-2.0, -7.0]], [[1.0, 0.0]], [[5.0, -9.0]]) == pytest.approx(0.4740769842 + 1.0)


# P_w = ½ (2 tokens, 2 log ½), P_l = ¼ (3 tokens, 3 log ¼): odds 1 and ⅓
HALF_AND_QUARTER = [[-2 * LOG2, -6 * LOG2]], [[1.0, 0.0]], None, [[2.0, 3.0]]


def test_orpo() -> None:
    # −log ½ − λ·log σ(log 1 − log ⅓) = log 2 + λ·log(4/3), λ = .5
    assert value({"name": "orpo", "beta": 0.5}, *HALF_AND_QUARTER) == pytest.approx(LOG2 + 0.5 * math.log(4 / 3))


def test_asft() -> None:
    # −log ½ − β[log ½ + log(1 − ¼)] = 1.5·log 2 + .5·log(4/3), β = .5
    assert value({"name": "asft", "beta": 0.5}, *HALF_AND_QUARTER) == pytest.approx(1.5 * LOG2 + 0.5 * math.log(4 / 3))


@pytest.mark.parametrize("name", ["orpo", "asft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_certain_and_impossible_responses_have_a_finite_loss_and_gradient(name: str, dtype: torch.dtype) -> None:
    batch = batch_of([[0.0, -1e4], [-1e4, 0.0], [-1e-9, -1e-9]], [[1.0, 0.0]] * 3, dtype=dtype)
    policy = batch.policy_logps_BN.requires_grad_()
    losses = parse_loss(name)(batch)
    losses.sum().backward()
    assert losses.isfinite().all() and policy.grad.isfinite().all()


@pytest.mark.parametrize("average", [-30.0, -3.0, -LOG2 - 1e-9, -LOG2 + 1e-9, -1e-3, -2e-6])
def test_log_odds_are_exact_at_both_ends(average: float) -> None:
    """ℓ of orpo against a response of even odds, in float64: log odds = x − log(1 − e^x), by expm1 of the standard library."""
    found = value({"name": "orpo", "beta": 1.0}, [[4 * average, -4 * LOG2]], [[1.0, 0.0]])
    odds = average - math.log(-math.expm1(average))
    assert found == pytest.approx(-average + math.log1p(math.exp(-odds)), rel=1e-12)


@for_all(batch=ragged())
def test_cpo_without_imitation_is_dpo_with_a_reference_of_equal_likelihood(batch: PreferenceBatch) -> None:
    flat = PreferenceBatch(
        batch.policy_logps_BN, torch.zeros_like(batch.reference_logps_BN), batch.lengths_BN, batch.rewards_BN, batch.mask_BN
    )
    same(parse_loss({"name": "cpo", "sft_weight": 0.0})(batch), parse_loss("dpo")(flat))


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda p: " ".join(map(str, p.values())))
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_equal_the_reference(parameters: dict[str, Any], seed: int) -> None:
    compare_with_reference(parameters, seed)


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda p: " ".join(map(str, p.values())))
def test_float32_agrees_with_float64(parameters: dict[str, Any]) -> None:
    compare_precisions(parameters)
