"""Losses for flipped preferences: arithmetic by hand, the independent reference, unbiasedness, minima."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from dora_core.losses import PreferenceBatch, parse_loss
from tests.dora_core.batches import batch_of, for_all, ragged, same, softplus, value
from tests.dora_core.losses.reference import compare_precisions, compare_with_reference

LOG2 = math.log(2.0)

PARAMETERS: list[dict[str, Any]] = [
    {"name": "cdpo"},
    {"name": "robust_dpo"},
    {"name": "cdpo", "beta": 0.5, "epsilon": 0.3, "pairs": "all"},
    {"name": "robust_dpo", "beta": 0.5, "epsilon": 0.3, "pairs": "all"},
    {"name": "ropo"},
    {"name": "ropo", "beta": 0.5, "alpha": 1.5, "pairs": "all"},
]


def test_cdpo() -> None:
    # m = 1·(1 − 0) = 1, ε = .2: 0.8·log(1 + e^−1) + 0.2·log(1 + e) = 0.8·0.313262 + 0.2·1.313262 = 0.513262
    assert value({"name": "cdpo", "beta": 1.0, "epsilon": 0.2}, [[1.0, 0.0]], [[1.0, 0.0]]) == pytest.approx(0.5132616875)


def test_robust_dpo() -> None:
    # m = 1, ε = .2: (0.8·0.313262 − 0.2·1.313262) / 0.6 = (0.250609 − 0.262652) / 0.6 = −0.020072
    assert value({"name": "robust_dpo", "beta": 1.0, "epsilon": 0.2}, [[1.0, 0.0]], [[1.0, 0.0]]) == pytest.approx(-0.0200716458)


def test_ropo() -> None:
    # α = 3: a = 12/16, b = 36/16; m = log 3: σ(m) = ¾: ¾·log(4/3) + 9/4·¼ = 0.215762 + 0.5625
    loss = {"name": "ropo", "beta": 1.0, "alpha": 3.0}
    assert value(loss, [[math.log(3.0), 0.0]], [[1.0, 0.0]]) == pytest.approx(0.75 * math.log(4 / 3) + 0.5625)


@pytest.mark.parametrize("alpha", [1.5, 3.0, 20.0])
def test_the_largest_slope_of_ropo_is_that_of_dpo(alpha: float) -> None:
    """|∂ℓ/∂m| ≤ 1 with equality at σ(−m) = (1 + α)/(2α), and it falls towards both sides: a label that is utterly wrong pulls little."""
    rivals = torch.linspace(-30, 10, 4001, dtype=torch.float64).requires_grad_()
    parse_loss({"name": "ropo", "beta": 1.0, "alpha": alpha}).of_margin(rivals).sum().backward()
    slopes = rivals.grad.abs()
    assert slopes.max().item() == pytest.approx(1.0, abs=1e-4)
    assert (-rivals[slopes.argmax()]).sigmoid().item() == pytest.approx((1 + alpha) / (2 * alpha), abs=0.02)
    # far on the wrong side only the term −a·log σ(m) is left, of slope a = 4α/(1 + α)²
    assert slopes[0].item() == pytest.approx(4 * alpha / (1 + alpha) ** 2, abs=1e-6)


def soft(loss: dict[str, Any], margin: float, q: float) -> float:
    batch = batch_of([[margin, 0.0]], [[1.0, 0.0]])
    return parse_loss(loss)(dataclasses.replace(batch, label_probability_B=torch.tensor([q], dtype=torch.float64))).item()


def test_dpo_pro_by_hand() -> None:
    # q = .8, ρ = .25: r = √(.25·.16) = .2; m = 1: .8·0.313262 + .2·1.313262 + .2·1 = 0.713262. m = −1: .8·1.313262 + .2·0.313262 + .2
    loss = {"name": "dpo_pro", "beta": 1.0, "rho": 0.25}
    assert soft(loss, 1.0, 0.8) == pytest.approx(0.7132616875)
    assert soft(loss, -1.0, 0.8) == pytest.approx(1.3132616875)
    assert soft(loss, 1.0, 1.0) == pytest.approx(math.log1p(math.exp(-1.0))), "a certain label is dpo's"


@for_all(margin=st.floats(-8, 8), q=st.floats(0.01, 0.99), rho=st.floats(0, 30))
def test_dpo_pro_is_the_worst_label_in_its_ball(margin: float, q: float, rho: float) -> None:
    """max over p in [0, 1] with (p − q)²/(q(1−q)) ≤ ρ, on a grid: p·ℓ(m) + (1−p)·ℓ(−m)."""
    radius = math.sqrt(rho * q * (1 - q))
    inside = [min(max(q + radius * k / 200, 0.0), 1.0) for k in range(-200, 201)]
    worst = max(p * softplus(-margin) + (1 - p) * softplus(margin) for p in inside)
    assert soft({"name": "dpo_pro", "beta": 1.0, "rho": rho}, margin, q) == pytest.approx(worst, rel=1e-12)


def test_dpo_pro_on_all_pairs_uses_the_record_s_probability() -> None:
    batch = batch_of([[2.0, 1.0, 0.0], [1.0, 0.0]], [[2.0, 1.0, 0.0], [1.0, 0.0]])
    q = torch.tensor([0.8, 0.6], dtype=torch.float64)
    loss = {"name": "dpo_pro", "beta": 1.0, "rho": 0.25}
    found = parse_loss(loss | {"pairs": "all"})(dataclasses.replace(batch, label_probability_B=q))
    expected = [(soft(loss, 1.0, 0.8) + soft(loss, 2.0, 0.8) + soft(loss, 1.0, 0.8)) / 3, soft(loss, 1.0, 0.6)]
    assert found.tolist() == pytest.approx(expected)


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
        ("ropo", 24 / 49 * LOG2 + 144 / 49 / 2),
        ("dpo_pro", LOG2),
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
