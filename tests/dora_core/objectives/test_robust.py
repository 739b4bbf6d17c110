"""The objectives' closed forms against arithmetic by hand, limits, and an independent float64 reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dora_core.objectives import StepSums, Terms, find_objective

NAMES = ["dora", "dora_outer", "dora_tilted", "dr_dpo", "dro", "erm", "kldpo", "reweight"]
LOSSES = torch.tensor([0.0, math.log(2.0), math.log(4.0)], dtype=torch.float64)
FACTORS = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)


def v(name: str, lam: float = 1.0, losses: torch.Tensor = LOSSES, factors: torch.Tensor = FACTORS) -> float:
    return find_objective(name)(losses, factors, lam).item()


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
    # mean ℓ = log 2: p = e^{ℓ − log 2} = (½, 1, 2); λ = .2: the last one's 2^5 = 32 is limited to 10, the first one's is 2^−5
    assert v("kldpo") == pytest.approx((log2 + 2 * 2 * log2) / 3)
    assert v("kldpo", 0.2) == pytest.approx((log2 + 10 * 2 * log2) / 3)
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
            "kldpo": np.mean(np.minimum(np.exp((loss - loss.mean()) / lam), 10) * loss),
            "dr_dpo": -lam * np.log(np.mean(np.exp(-loss / lam))),
        }
        for name in NAMES:
            assert v(name, lam, torch.tensor(loss), torch.tensor(h)) == pytest.approx(expected[name], rel=1e-12)


def sums_of(t: Terms, losses: torch.Tensor, factors: torch.Tensor) -> StepSums:
    log_mean_exp = torch.logsumexp(t.exponent_B + t.log_base_B, 0).item() - math.log(len(losses))
    return StepSums(factors.mean().item(), (t.slope_B * losses).mean().item(), log_mean_exp)


@pytest.mark.parametrize("name", NAMES)
def test_terms_reproduce_value_and_gradient_of_the_closed_form(name: str) -> None:
    """Two independent derivations: the closed form and its autograd against ``A · g · softmax(s + log b)`` and ``value``."""
    objective = find_objective(name)
    losses = LOSSES.clone().requires_grad_()
    closed = objective(losses, FACTORS, 0.7)
    closed.backward()
    t = objective.terms(LOSSES, FACTORS, 0.7)
    sums = sums_of(t, LOSSES, FACTORS)
    assert objective.value(sums, 0.7) == pytest.approx(closed.item(), rel=1e-12)
    torch.testing.assert_close(objective.outer(sums) * t.slope_B * (t.exponent_B + t.log_base_B).softmax(0), losses.grad)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"kldpo"}))  # its weights are constants for the gradient only
def test_gradients_against_finite_differences(name: str) -> None:
    objective = find_objective(name)
    assert torch.autograd.gradcheck(lambda x: objective(x, FACTORS, 0.7), LOSSES.clone().requires_grad_())


def test_large_lambda_forgets_robustness() -> None:
    for robust, plain in [("dro", "erm"), ("dr_dpo", "erm"), ("kldpo", "erm"), ("dora", "reweight")]:
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
    result = find_objective(name)(losses, torch.tensor([1.0, 3.0, 0.2]), 0.01)
    result.backward()
    assert result.isfinite()
    assert losses.grad.isfinite().all()


SCALES = st.floats(0.01, 100.0)
BATCHES = st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(1e-3, 1e3)), min_size=1, max_size=12)


@given(BATCHES, SCALES, st.randoms(use_true_random=False))
@pytest.mark.parametrize("name", NAMES)
def test_weights_and_values_of_any_batch(name: str, batch: list[tuple[float, float]], lam: float, random) -> None:
    """Finite, blind to the order of records, p sums to 1, and the value lies between the worst and best record where it must."""
    objective = find_objective(name)
    loss, h = (torch.tensor(column, dtype=torch.float64) for column in zip(*batch, strict=True))
    got = objective(loss, h, lam)
    t = objective.terms(loss, h, lam)
    p = (t.exponent_B + t.log_base_B).softmax(0)
    assert got.isfinite()
    assert p.sum().item() == pytest.approx(1.0)
    order = list(range(len(batch)))
    random.shuffle(order)
    assert objective(loss[order], h[order], lam).item() == pytest.approx(got.item(), rel=1e-9, abs=1e-9)
    scored = h * loss if name in ("dora", "reweight") else loss
    if name not in ("dora_outer", "kldpo"):  # neither is a mean: kldpo's weights do not sum to 1
        assert scored.min().item() - 1e-6 <= got.item() <= scored.max().item() + 1e-6


@given(BATCHES, SCALES, st.floats(0.1, 10.0))
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_lambda_have_one_unit(name: str, batch: list[tuple[float, float]], lam: float, scale: float) -> None:
    """V(cℓ; cλ) = c·V(ℓ; λ): λ means nothing but in units of the loss."""
    loss, h = (torch.tensor(column, dtype=torch.float64) for column in zip(*batch, strict=True))
    objective = find_objective(name)
    assert objective(scale * loss, h, scale * lam).item() == pytest.approx(scale * objective(loss, h, lam).item(), rel=1e-9, abs=1e-6)


@given(BATCHES, st.floats(0.1, 10.0))
@pytest.mark.parametrize("name", ["dora_tilted"])
def test_the_scale_of_h_does_not_matter_to(name: str, batch: list[tuple[float, float]], scale: float) -> None:
    loss, h = (torch.tensor(column, dtype=torch.float64) for column in zip(*batch, strict=True))
    assert v(name, 1.0, loss, scale * h) == pytest.approx(v(name, 1.0, loss, h), rel=1e-9, abs=1e-9)
