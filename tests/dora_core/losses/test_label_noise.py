"""Losses for flipped preferences: arithmetic by hand, the independent reference, unbiasedness, minima."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from dora_core.losses import PreferenceBatch, parse_loss
from tests.dora_core.batches import batch_of, for_all, ragged, same, value
from tests.dora_core.losses.reference import compare_precisions, compare_with_reference

LOG2 = math.log(2.0)

PARAMETERS: list[dict[str, Any]] = [
    {"name": "cdpo"},
    {"name": "robust_dpo"},
    {"name": "cdpo", "beta": 0.5, "epsilon": 0.3, "pairs": "all"},
    {"name": "robust_dpo", "beta": 0.5, "epsilon": 0.3, "pairs": "all"},
]


def test_cdpo() -> None:
    # m = 1·(1 − 0) = 1, ε = .2: 0.8·log(1 + e^−1) + 0.2·log(1 + e) = 0.8·0.313262 + 0.2·1.313262 = 0.513262
    assert value({"name": "cdpo", "beta": 1.0, "epsilon": 0.2}, [[1.0, 0.0]], [[1.0, 0.0]]) == pytest.approx(0.5132616875)


def test_robust_dpo() -> None:
    # m = 1, ε = .2: (0.8·0.313262 − 0.2·1.313262) / 0.6 = (0.250609 − 0.262652) / 0.6 = −0.020072
    assert value({"name": "robust_dpo", "beta": 1.0, "epsilon": 0.2}, [[1.0, 0.0]], [[1.0, 0.0]]) == pytest.approx(-0.0200716458)


def test_minimum_of_cdpo_is_the_entropy_it_states() -> None:
    margin = torch.tensor([[math.log(9.0), 0.0]], dtype=torch.float64)
    assert value({"name": "cdpo", "beta": 1.0}, margin.tolist(), [[1.0, 0.0]]) == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))


EQUAL_TO_DPO = [{"name": "robust_dpo", "epsilon": 0.0}, {"name": "cdpo", "epsilon": 0.0}]


@pytest.mark.parametrize("parameters", EQUAL_TO_DPO, ids=lambda p: p["name"])
@pytest.mark.parametrize("pairs", ["best_worst", "all"])
@for_all(batch=ragged())
def test_without_its_extra_a_relative_is_dpo(parameters: dict[str, Any], pairs: str, batch: PreferenceBatch) -> None:
    same(parse_loss(parameters | {"pairs": pairs})(batch), parse_loss({"name": "dpo", "pairs": pairs})(batch))


@for_all(batch=ragged(most=2), epsilon=st.floats(0, 0.45))
def test_robust_dpo_is_unbiased_under_flips(batch: PreferenceBatch, epsilon: float) -> None:
    """E over flips of probability ε of rDPO's ℓ = DPO's ℓ on the clean preference (arXiv 2403.00409)."""
    loss = parse_loss({"name": "robust_dpo", "epsilon": epsilon})
    flipped = PreferenceBatch(batch.policy_logps_BN, batch.reference_logps_BN, batch.lengths_BN, -batch.rewards_BN, batch.mask_BN)
    same((1 - epsilon) * loss(batch) + epsilon * loss(flipped), parse_loss("dpo")(batch))


OPTIMA = [({"name": "cdpo", "beta": 0.5, "epsilon": 0.1}, math.log(0.9 / 0.1) / 0.5)]


@pytest.mark.parametrize(("parameters", "margin"), OPTIMA, ids=lambda x: x["name"] if isinstance(x, dict) else "")
def test_minimum_is_at_its_finite_margin(parameters: dict[str, Any], margin: float) -> None:
    """IPO: lr_w − lr_l = 1/(2β). EXO and cDPO: σ(β(lr_w − lr_l)) = 1 − ε."""
    loss = parse_loss(parameters)
    batch = batch_of([[margin, 0.0]], [[1.0, 0.0]])
    policy = batch.policy_logps_BN.requires_grad_()
    lowest = loss(batch)
    lowest.sum().backward()
    assert policy.grad.abs().max().item() < 1e-12
    for other in (-5.0, 0.0, margin - 0.1, margin + 0.1, margin + 5.0):
        assert loss(batch_of([[other, 0.0]], [[1.0, 0.0]])).item() > lowest.item()


@for_all(margin=st.floats(50, 500))
def test_robust_dpo_has_no_floor(margin: float) -> None:
    """The offset it states: ≈ −ε·m/(1−2ε)."""
    loss = parse_loss({"name": "robust_dpo", "beta": 1.0, "epsilon": 0.2})
    assert loss(batch_of([[margin, 0.0]], [[1.0, 0.0]])).item() == pytest.approx(-0.2 * margin / 0.6)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("cdpo", LOG2),
        ("robust_dpo", LOG2),
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
