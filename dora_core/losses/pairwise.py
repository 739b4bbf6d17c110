"""Losses on one preferred and one other response. Shape legend in ``base.py``."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from dora_core.losses.base import PreferenceBatch, PreferenceLoss, register_loss


@register_loss
class DPO(PreferenceLoss):
    """ℓ = −log σ(β (lr_w − lr_l)) — Direct Preference Optimization, arXiv 2305.18290, equation 7.

    On a list of more than two, ``pairs`` chooses (best, worst) or the mean over all strict preferences.
    """

    name: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0, le=100, description="β: strength of the pull towards the reference.")
    pairs: Literal["best_worst", "all"] = Field("best_worst", description="Which pairs of a list count.")

    offset: ClassVar[str] = "ℓ > 0; log 2 at the reference, 0 for a perfectly separated pair"

    @property
    def reads_pairs_only(self) -> bool:
        return self.pairs == "best_worst"

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        lr_BN = batch.log_ratios_BN
        if self.pairs == "best_worst":
            best_B, worst_B = batch.best_worst
            margin_B = lr_BN.gather(1, best_B[:, None]) - lr_BN.gather(1, worst_B[:, None])
            return -logsigmoid(self.beta * margin_B.squeeze(1))
        losses_BNN = -logsigmoid(self.beta * (lr_BN[:, :, None] - lr_BN[:, None, :]))
        pairs_B = batch.beats_BNN.sum(dim=(1, 2)).clamp(min=1)
        return torch.where(batch.beats_BNN, losses_BNN, 0.0).sum(dim=(1, 2)) / pairs_B
