"""Pairs from longer lists, by hand and as identities."""

from __future__ import annotations

import math

import pytest
import torch

from dora_core.losses import LOSSES, PairwiseLoss, PreferenceBatch
from tests.dora_core.batches import VARIANTS, batch_of, for_all, ragged, same, softplus, value

LOG2 = math.log(2.0)

PAIRWISE = sorted(name for name in LOSSES if "pairs" in LOSSES[name].model_fields)


def test_dpo_takes_best_and_worst_of_a_list_in_any_order() -> None:
    # rewards (2, 5, −1): winner is response 1 (lr 3), loser response 2 (lr 1): −log σ(0.1·2) = log(1 + e^−0.2)
    assert value("dpo", [[10.0, 3.0, 1.0]], [[2.0, 5.0, -1.0]]) == pytest.approx(math.log1p(math.exp(-0.2)))


def test_all_pairs_is_the_mean_over_strict_preferences() -> None:
    # lr = (3, 1, 0), rewards (2, 1, 1): strict pairs (0,1) and (0,2), the tie (1,2) is none: mean of softplus(−2β), softplus(−3β)
    expected = (softplus(-2.0) + softplus(-3.0)) / 2
    assert value({"name": "dpo", "beta": 1.0, "pairs": "all"}, [[3.0, 1.0, 0.0]], [[2.0, 1.0, 1.0]]) == pytest.approx(expected)


def test_every_pairwise_loss_offers_all_pairs() -> None:
    pairwise = {name for name, loss in LOSSES.items() if issubclass(loss, PairwiseLoss)}
    assert pairwise == set(LOSSES) - {"dpo_pl", "lire", "rrhf", "pro", "d2o", "sft", "mpo", "lcpo", "wpo", "aot"}


@pytest.mark.parametrize("name", PAIRWISE)
@for_all(batch=ragged(most=2))
def test_all_pairs_of_two_is_best_worst(name: str, batch: PreferenceBatch) -> None:
    same(VARIANTS[f"{name} on all pairs"](batch), VARIANTS[name](batch))


@pytest.mark.parametrize("name", sorted(set(PAIRWISE) - {"rpo", "cpo", "orpo", "asft"}))  # their SFT term stays on the list's best response
@for_all(batch=ragged())
def test_all_pairs_is_the_mean_over_pairs(name: str, batch: PreferenceBatch) -> None:
    for row in range(len(batch.mask_BN)):
        record = [getattr(batch, f)[row][batch.mask_BN[row]] for f in ("policy_logps_BN", "rewards_BN", "reference_logps_BN", "lengths_BN")]
        pairs = torch.combinations(torch.arange(len(record[0])))
        each = VARIANTS[name](batch_of(*([column[pair].tolist() for pair in pairs] for column in record)))
        same(VARIANTS[f"{name} on all pairs"](batch)[row], each.mean())
