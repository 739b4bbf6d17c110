"""Losses that weigh off-policy pairs by how likely the policy is to write their responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import field_validator

from dora_core.lazy_torch import torch
from dora_core.losses.base import PreferenceBatch, PreferenceLoss, register_loss
from dora_core.losses.nested import LossOnBase, stands_alone
from dora_core.losses.pairwise import PairwiseLoss, mean_over_pairs

if TYPE_CHECKING:
    from torch import Tensor


@register_loss
class WPO(LossOnBase):
    """ℓ = sg(min(ω_w·ω_l, 1))·ℓ(y_w, y_l), log ω = mean_t(log π(y_t) − log Σ_v π(v)²) — Weighted Preference Optimization, arXiv 2406.11827.

    The paper's equation 2 with "sampled alignment": Σ_v π(v)² is the mean probability of a token that the policy samples, so that its own
    samples weigh about 1. The limit of 1 is that of the authors' code and of TRL. ℓ is a loss on pairs without a term of its own beside
    them (so not rpo, cpo, orpo or asft); the weight is the pair's, also with ``pairs: all``.
    """

    reads_label_probability: ClassVar[bool] = True
    reads_collisions: ClassVar[bool] = True

    name: Literal["wpo"] = "wpo"

    offset: ClassVar[str] = "that of the base loss times a weight in (0, 1] that differs by record"

    @field_validator("base", mode="after")
    @classmethod
    def _check(cls, base: PreferenceLoss) -> PreferenceLoss:
        if not isinstance(base, PairwiseLoss) or type(base).__call__ is not PairwiseLoss.__call__ or not stands_alone(base):
            raise ValueError(f"must be a loss on pairs alone, such as dpo, ipo or simpo, got {base.name}")
        return base

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        base = self.base
        assert isinstance(base, PairwiseLoss)
        if batch.log_collisions_BN is None:
            raise ValueError("wpo reads the batch's log_collisions_BN, which are not given: ask ResponseLogps for them")
        surplus_BN = torch.where(batch.mask_BN, batch.policy_logps_BN - batch.log_collisions_BN, 0.0).detach() / batch.token_counts_BN
        scores_BN = torch.where(batch.measured_BN, base.scores(batch), 0.0)
        if base.reads_pairs_only:
            weight_B = (batch.of_best(surplus_BN) + batch.of_worst(surplus_BN)).clamp(max=0).exp()
            return weight_B * base.of_labelled(batch.of_best(scores_BN), batch.of_worst(scores_BN), batch)
        weight_BNN = (surplus_BN[:, :, None] + surplus_BN[:, None, :]).clamp(max=0).exp()
        return mean_over_pairs(weight_BNN * base.of_labelled(scores_BN[:, :, None], scores_BN[:, None, :], batch), batch)
