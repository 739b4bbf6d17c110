"""Losses on a whole list of responses. Shape legend in ``base.py``."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from dora_core.losses.base import PreferenceBatch, PreferenceLoss, register_loss


@register_loss
class DPOPL(PreferenceLoss):
    """ℓ = Σ_k [logsumexp_{j ≥ k}(β·lr_j) − β·lr_k], best first — Plackett-Luce DPO, arXiv 2305.18290, appendix A.3.

    Written without sorting: response k competes with itself and every response of strictly smaller reward. That is the
    formula above when rewards differ, and makes tied responses compete only with what is below both. Equals ``dpo`` at N = 2.
    """

    name: Literal["dpo_pl"] = "dpo_pl"
    beta: float = Field(0.1, gt=0, le=100, description="β: strength of the pull towards the reference.")

    offset: ClassVar[str] = "ℓ > 0; log N! at the reference (N responses, no ties), 0 for a perfectly separated list"

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        scores_BN = self.beta * batch.log_ratios_BN
        itself_NN = torch.eye(scores_BN.shape[1], dtype=torch.bool, device=scores_BN.device)
        competes_BNN = batch.beats_BNN | itself_NN
        normalizer_BN = scores_BN[:, None, :].masked_fill(~competes_BNN, -torch.inf).logsumexp(dim=2)
        return (normalizer_BN - scores_BN).sum(dim=1)


@register_loss
class LiRE(PreferenceLoss):
    """ℓ = −Σ_i softmax_N(log π / T)_i · softmax_N(r)_i — Listwise Reward Enhancement, arXiv 2405.13516, equation 8.

    Reference-free. Responses without a reward are left out of both softmaxes.
    """

    name: Literal["lire"] = "lire"
    temperature: float = Field(2.0, gt=0, le=1000, description="T of the policy's softmax over the list.")

    offset: ClassVar[str] = "−1 < ℓ < 0; −1/N when the policy ranks all responses alike, so a large h tilts weight away from a record"

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        policy_BN = _masked_softmax(batch.policy_logps_BN / self.temperature, batch.measured_BN)
        target_BN = _masked_softmax(batch.rewards_BN, batch.measured_BN)
        return -(policy_BN * target_BN.to(policy_BN.dtype)).sum(dim=1)


def _masked_softmax(scores_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Softmax over the last dimension; 0 where masked. Finite filling keeps a fully masked row and its gradient free of NaN."""
    filled_BN = torch.where(mask_BN, scores_BN, torch.finfo(scores_BN.dtype).min)
    return filled_BN.softmax(dim=-1) * mask_BN
