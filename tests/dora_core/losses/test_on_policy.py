"""WPO: weights by hand, per pair on all pairs, soft labels, and what it refuses."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from pydantic import ValidationError

from dora_core.losses import PreferenceBatch, parse_loss
from tests.dora_core.batches import batch_of, for_all, ragged, same, softplus


def with_collisions(batch: PreferenceBatch, collisions: list[list[float]]) -> PreferenceBatch:
    return dataclasses.replace(batch, log_collisions_BN=torch.tensor(collisions, dtype=torch.float64))


def test_weight_loss_and_gradient_by_hand() -> None:
    # log ω = (−4 + 2)/4 = −½ and (−6 + 4)/2 = −1: weight e^−1.5; β = .5, lr = (2, 0): m = 1
    batch = with_collisions(batch_of([[-4.0, -6.0]], [[1.0, 0.0]], [[-6.0, -6.0]], [[4.0, 2.0]]), [[-2.0, -4.0]])
    policy = batch.policy_logps_BN.requires_grad_()
    found = parse_loss({"name": "wpo", "base": {"name": "dpo", "beta": 0.5}})(batch)
    found.sum().backward()
    assert found.item() == pytest.approx(math.exp(-1.5) * softplus(-1.0))
    # the weight is held fixed: −e^−1.5·σ(−1)·β
    slope = -math.exp(-1.5) / (1 + math.e) * 0.5
    torch.testing.assert_close(policy.grad, torch.tensor([[slope, -slope]], dtype=torch.float64))


def test_a_pair_weighs_no_more_than_1() -> None:
    batch = with_collisions(batch_of([[-1.0, -1.0]], [[1.0, 0.0]]), [[-9.0, -9.0]])
    assert parse_loss("wpo")(batch).item() == pytest.approx(math.log(2.0))


@for_all(batch=ragged())
def test_on_all_pairs_every_pair_has_its_own_weight(batch: PreferenceBatch) -> None:
    generator = torch.Generator().manual_seed(0)
    collisions = -20 * torch.rand(batch.mask_BN.shape, generator=generator, dtype=torch.float64)
    q_B = torch.linspace(0.6, 1.0, len(batch.mask_BN), dtype=torch.float64)
    batch = dataclasses.replace(batch, log_collisions_BN=collisions, label_probability_B=q_B)
    found = parse_loss({"name": "wpo", "base": {"name": "dpo", "pairs": "all"}})(batch)
    for row in range(len(batch.mask_BN)):
        total, pairs = 0.0, 0
        for i, j in batch.beats_BNN[row].nonzero().tolist():
            surplus = [(batch.policy_logps_BN[row, k] - collisions[row, k]) / batch.lengths_BN[row, k] for k in (i, j)]
            m = 0.1 * float(batch.log_ratios_BN[row, i] - batch.log_ratios_BN[row, j])
            q = q_B[row].item()
            total += min(1.0, math.exp(float(sum(surplus)))) * (q * softplus(-m) + (1 - q) * softplus(m))
            pairs += 1
        assert found[row].item() == pytest.approx(total / pairs, rel=1e-9)


@for_all(batch=ragged())
def test_where_every_response_is_a_sample_it_is_its_base(batch: PreferenceBatch) -> None:
    likely = dataclasses.replace(batch, log_collisions_BN=torch.where(batch.mask_BN, batch.policy_logps_BN, -1e30))
    same(parse_loss({"name": "wpo", "base": "simpo"})(likely), parse_loss("simpo")(batch))


@pytest.mark.parametrize("base", ["cpo", "rpo", "kto", "lire", "lcpo", "mpo"])
def test_a_base_with_terms_beside_its_pairs_is_refused(base: str) -> None:
    with pytest.raises(ValidationError, match=f"must be a loss on pairs alone, such as dpo, ipo or simpo, got {base}"):
        parse_loss({"name": "wpo", "base": base})


def test_collisions_that_are_not_given_are_an_error() -> None:
    with pytest.raises(ValueError, match="log_collisions_BN"):
        parse_loss("wpo")(batch_of([[0.0, 0.0]], [[1.0, 0.0]]))
