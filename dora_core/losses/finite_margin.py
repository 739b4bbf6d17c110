"""Losses with their minimum at a finite margin: they stop pushing once a pair is separated far enough."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dora_core.lazy_torch import logsigmoid
from dora_core.losses.base import PreferenceBatch, register_loss
from dora_core.losses.pairwise import MarginLoss, PairwiseLoss

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


@register_loss
class Hinge(MarginLoss):
    """ℓ = max(0, 1 − β(lr_w − lr_l)) — SLiC-HF's calibration loss, arXiv 2305.10425, on log-ratios.

    The paper compares log π with a target margin δ (here 1/β nats) and adds a cross-entropy term; on log-ratios it is RSO's "hinge-norm",
    arXiv 2309.06657, and TRL's ``hinge``. For the cross-entropy term take ``mpo`` with the part ``sft``.
    """

    name: Literal["hinge"] = "hinge"

    offset: ClassVar[str] = "ℓ ≥ 0; 1 at the reference, 0 from a margin of 1/β nats on"

    def of_margin(self, margin: Tensor) -> Tensor:
        return (1 - margin).relu()


@register_loss
class SPPO(PairwiseLoss):
    """ℓ = (lr_w − 1/(2β))² + (lr_l + 1/(2β))² — SPPO, arXiv 2405.00675, equation 4.7 at P(y_w ≻ y_l) = 1, η there is 1/β here.

    Squares of each response's own log-ratio around η(P − ½), P its chance to win: the margin of a pair cannot grow by lowering both
    responses. With a soft label q the expectation over labels is the paper's loss at P(y_w ≻ y_l) = q plus 2q(1−q)/β², which does not
    depend on the policy. The paper estimates P against the policy's own samples; here a pair's other response stands for them, as in the
    authors' code.
    """

    name: Literal["sppo"] = "sppo"
    beta: float = Field(1e-3, ge=1e-4, le=100, description="β: the targets are ±1/(2β) nats; the paper has η = 1/β = 1000.")

    offset: ClassVar[str] = "ℓ ≥ 0; 1/(2β²) at the reference (5e5 at β = .001), 0 at log-ratios of ±1/(2β): choose λ on that scale"

    def scores(self, batch: PreferenceBatch) -> Tensor:
        return batch.log_ratios_BN

    def of_pair(self, winner: Tensor, loser: Tensor) -> Tensor:
        target = 1 / (2 * self.beta)
        return (winner - target).square() + (loser + target).square()
