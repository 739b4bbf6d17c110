"""Losses with their minimum at a finite margin: they stop pushing once a pair is separated far enough."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dora_core.lazy_torch import logsigmoid
from dora_core.losses.base import PreferenceBatch, register_loss
from dora_core.losses.pairwise import MarginLoss

if TYPE_CHECKING:
    from torch import Tensor


@register_loss
class IPO(MarginLoss):
    """ℓ = (lr_w − lr_l − 1/(2β))² — Identity Preference Optimization, arXiv 2310.12036, equation 17 (τ there is β here).

    On summed log-ratios as in the paper; TRL averages them over tokens.
    """

    name: Literal["ipo"] = "ipo"
    beta: float = Field(0.1, ge=1e-4, le=100, description="β: the target margin is 1/(2β) nats.")

    offset: ClassVar[str] = "ℓ ≥ 0; 1/(4β²) at the reference (25 at β = .1), 0 at a margin of 1/(2β): choose λ on that scale"

    def scores(self, batch: PreferenceBatch) -> Tensor:
        return batch.log_ratios_BN

    def of_margin(self, margin: Tensor) -> Tensor:
        return (margin - 1 / (2 * self.beta)).square()


@register_loss
class EXO(MarginLoss):
    """ℓ = s(log s − log(1−ε)) + (1−s)(log(1−s) − log ε), s = σ(β(lr_w − lr_l)) — Efficient Exact Optimization, arXiv 2402.00856, K = 2.

    The reverse KL from the policy's preference to the smoothed label (1−ε, ε). Bounded: for a pair in clearly reversed order it
    saturates, and its gradient vanishes.
    """

    name: Literal["exo"] = "exo"
    beta: float = Field(0.5, gt=0, le=100, description="β: strength of the pull towards the reference.")
    epsilon: float = Field(1e-3, gt=0, lt=0.5, description="ε: smoothed probability that the label is wrong.")

    offset: ClassVar[str] = (
        "0 ≤ ℓ < −log ε; 0 at s = 1−ε, −log 2 − ½log(ε(1−ε)) at the reference (2.76 at ε = .001), −log(1−ε) for a perfectly separated pair"
    )

    def of_margin(self, margin: Tensor) -> Tensor:
        right, wrong = margin.sigmoid(), (-margin).sigmoid()
        return right * (logsigmoid(margin) - math.log1p(-self.epsilon)) + wrong * (logsigmoid(-margin) - math.log(self.epsilon))
