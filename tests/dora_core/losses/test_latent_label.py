"""LCPO: posterior and gradient by hand, limits of η, and any loss on pairs as its base."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from pydantic import ValidationError

from dora_core.losses import PreferenceBatch, parse_loss
from tests.dora_core.batches import batch_of, for_all, ragged, same


def with_noise(batch: PreferenceBatch, *rates: float) -> PreferenceBatch:
    return dataclasses.replace(batch, noise_rates_B=torch.tensor(rates, dtype=torch.float64))


def test_posterior_loss_and_gradient_by_hand() -> None:
    # m = log 3: p = ¾; η = ¼: w = ¾·¾/(¾·¾ + ¼·¼) = .9; ℓ = .9·log(4/3) + .1·log 4
    # the gradient holds w fixed: ∂ℓ/∂m = −.9·σ(−m) + .1·σ(m) = −.9·¼ + .1·¾ = −.15
    batch = with_noise(batch_of([[math.log(3.0), 0.0]], [[1.0, 0.0]]), 0.25)
    policy = batch.policy_logps_BN.requires_grad_()
    loss = parse_loss({"name": "lcpo", "base": {"name": "dpo", "beta": 1.0}})
    assert loss.label_correct(batch).item() == pytest.approx(0.9)
    found = loss(batch)
    found.sum().backward()
    assert found.item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4.0))
    torch.testing.assert_close(policy.grad, torch.tensor([[-0.15, 0.15]], dtype=torch.float64))


def test_without_estimates_every_record_has_the_initial_rate() -> None:
    batch = batch_of([[0.0, 0.0]], [[1.0, 0.0]])
    assert parse_loss({"name": "lcpo", "initial_noise": 0.3}).label_correct(batch).item() == pytest.approx(0.7)


@pytest.mark.parametrize("base", ["dpo", "ipo", "simpo", "cpo", "kto", {"name": "dpo", "pairs": "all"}, "mpo"], ids=str)
@for_all(batch=ragged(), eta=st.floats(0.01, 0.5))
def test_the_posterior_is_bayes_rule_on_the_boltzmann_probability_of_the_base(base: Any, batch: PreferenceBatch, eta: float) -> None:
    """w = (1−η)e^{−ℓ₁}/((1−η)e^{−ℓ₁} + η·e^{−ℓ₀}) with ℓ₀ of the reversed record; ℓ = w·ℓ₁ + (1−w)·ℓ₀."""
    noisy = with_noise(batch, *[eta] * len(batch.mask_BN))
    right = parse_loss(base)(batch)
    wrong = parse_loss(base)(dataclasses.replace(batch, rewards_BN=-batch.rewards_BN))
    logits = torch.stack([math.log1p(-eta) - right, math.log(eta) - wrong])
    w = logits.softmax(0)[0]
    loss = parse_loss({"name": "lcpo", "base": base})
    same(loss.label_correct(noisy), w)
    same(loss(noisy), w * right + (1 - w) * wrong)


@for_all(batch=ragged())
def test_a_rate_of_0_is_the_base_loss(batch: PreferenceBatch) -> None:
    same(parse_loss("lcpo")(with_noise(batch, *[0.0] * len(batch.mask_BN))), parse_loss("dpo")(batch))


@pytest.mark.parametrize("base", ["lire", "lcpo", "wpo", "dpo_pro"])
def test_a_base_without_a_reversed_label_is_refused(base: str) -> None:
    with pytest.raises(ValidationError, match=f"must be a loss on pairs, such as dpo, ipo, simpo or cpo; {base} has no"):
        parse_loss({"name": "lcpo", "base": base})
