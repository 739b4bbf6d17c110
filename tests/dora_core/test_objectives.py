"""The objectives' closed forms against arithmetic by hand, limits, and an independent float64 reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dora_core.config import ObjectiveConfig
from dora_core.objectives import terms, value

NAMES = ["erm", "reweight", "dro", "dora", "dora_outer", "dora_tilted", "dr_dpo"]
LOSSES = torch.tensor([0.0, math.log(2.0), math.log(4.0)], dtype=torch.float64)
FACTORS = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)


def v(name: str, lam: float = 1.0, losses: torch.Tensor = LOSSES, factors: torch.Tensor = FACTORS) -> float:
    return value(losses, factors, ObjectiveConfig(name=name, lam=lam)).item()


def test_by_hand() -> None:
    log2 = math.log(2.0)
    assert v("erm") == pytest.approx((0 + log2 + 2 * log2) / 3)
    # h·ℓ = (0, log 2, ½·2 log 2)
    assert v("reweight") == pytest.approx((0 + log2 + log2) / 3)
    # mean of e^ℓ = (1 + 2 + 4)/3
    assert v("dro") == pytest.approx(math.log(7 / 3))
    # mean of e^{hℓ} = (1 + 2 + 2)/3
    assert v("dora") == pytest.approx(math.log(5 / 3))
    # mean(h) = 3.5/3
    assert v("dora_outer") == pytest.approx(3.5 / 3 * math.log(7 / 3))
    # Σ h e^ℓ / Σ h = (2·1 + 1·2 + 0.5·4)/3.5
    assert v("dora_tilted") == pytest.approx(math.log(6 / 3.5))
    # −log mean e^{−ℓ} = −log((1 + 1/2 + 1/4)/3)
    assert v("dr_dpo") == pytest.approx(-math.log(1.75 / 3))
    # λ = 2: 2·log mean e^{hℓ/2} = 2·log((1 + √2 + √2)/3)
    assert v("dora", 2.0) == pytest.approx(2 * math.log((1 + 2 * math.sqrt(2)) / 3))


def test_against_numpy_in_float64() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        loss, h, lam = rng.normal(size=9), rng.gamma(1.0, size=9), float(rng.uniform(0.2, 5))
        expected = {
            "erm": loss.mean(),
            "reweight": (h * loss).mean(),
            "dro": lam * np.log(np.mean(np.exp(loss / lam))),
            "dora": lam * np.log(np.mean(np.exp(h * loss / lam))),
            "dora_outer": h.mean() * lam * np.log(np.mean(np.exp(loss / lam))),
            "dora_tilted": lam * np.log(np.mean(h / h.mean() * np.exp(loss / lam))),
            "dr_dpo": -lam * np.log(np.mean(np.exp(-loss / lam))),
        }
        for name in NAMES:
            assert v(name, lam, torch.tensor(loss), torch.tensor(h)) == pytest.approx(expected[name], rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_terms_reproduce_the_gradient_of_the_closed_form(name: str) -> None:
    """Two independent derivations: autograd of ``value`` and ``A · g · softmax(s + log b)`` of the module's docstring."""
    config = ObjectiveConfig(name=name, lam=0.7)
    losses = LOSSES.clone().requires_grad_()
    value(losses, FACTORS, config).backward()
    t = terms(losses, FACTORS, config)
    outer = FACTORS.mean() if name == "dora_outer" else 1.0
    torch.testing.assert_close(outer * t.slope_B * (t.exponent_B + t.log_base_B).softmax(0), losses.grad)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_against_finite_differences(name: str) -> None:
    config = ObjectiveConfig(name=name, lam=0.7)
    assert torch.autograd.gradcheck(lambda x: value(x, FACTORS, config), LOSSES.clone().requires_grad_())


def test_large_lambda_forgets_robustness() -> None:
    for robust, plain in [("dro", "erm"), ("dr_dpo", "erm"), ("dora", "reweight")]:
        assert v(robust, 1e7) == pytest.approx(v(plain), rel=1e-5)


def test_shift_of_the_losses() -> None:
    """``dora_tilted`` and ``dro`` move by exactly the shift; ``dora`` does not (h multiplies the shift)."""
    shifted = LOSSES + 3.0
    for name in ("erm", "dro", "dora_tilted", "dr_dpo"):
        assert v(name, losses=shifted) == pytest.approx(v(name) + 3.0)
    assert abs(v("dora", losses=shifted) - (v("dora") + 3.0)) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_extreme_losses_do_not_overflow(name: str) -> None:
    losses = torch.tensor([1e4, -1e4, 3.0], dtype=torch.float32, requires_grad=True)
    result = value(losses, torch.tensor([1.0, 3.0, 0.2]), ObjectiveConfig(name=name, lam=0.01))
    result.backward()
    assert result.isfinite()
    assert losses.grad.isfinite().all()
