"""Losses on single desirable or undesirable responses, with a *fixed* reference point.

KTO and BCO compare β·lr with a quantity of the whole batch: KTO's z0, BCO's δ. Here a loss never couples records: the robust
objective weighs each one by its own ℓ, and a coupled ℓ would make the micro-batch size a hidden hyper-parameter. A
within-record estimate does not help: for BCO it would be δ = β(lr_w + lr_l)/2, which turns the loss into dpo at β/2 and
removes its binary character. So both are parameters, constant over the run: an **approximation** of the papers, named so.

The labels come from the record's own preferences: the winner of a pair is desirable, the loser undesirable. The ½ is the
mean over the record's two examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dora_core.lazy_torch import logsigmoid
from dora_core.losses.base import register_loss
from dora_core.losses.pairwise import PairwiseLoss

if TYPE_CHECKING:
    from torch import Tensor


@register_loss
class FixedPointKTO(PairwiseLoss):
    """ℓ = ½[λ_D(1 − σ(β·lr_w − β·z0)) + λ_U(1 − σ(β·z0 − β·lr_l))] — KTO, arXiv 2402.01306, at a fixed z0.

    In the paper and in TRL z0 = max(0, mean log-ratio of mismatched prompt-response pairs of the batch), an estimate of
    KL(π ‖ π_ref) without gradient. The default 0 is its value at the reference and its lower bound; at λ_D = λ_U it is APO-zero,
    arXiv 2408.06266, up to a factor and a constant.
    """

    name: Literal["kto"] = "kto"
    desirable_weight: float = Field(1.0, gt=0, le=100, description="λ_D: weight of the preferred response.")
    undesirable_weight: float = Field(1.0, gt=0, le=100, description="λ_U: weight of the other response.")
    fixed_z0: float = Field(0.0, ge=0, le=1000, description="z0: reference point of lr, nats; the paper estimates KL(π ‖ π_ref) per batch.")

    offset: ClassVar[str] = "0 < ℓ < (λ_D + λ_U)/2; half of that at the reference if z0 = 0, 0 for a perfectly classified pair"

    def of_pair(self, winner: Tensor, loser: Tensor) -> Tensor:
        point = self.beta * self.fixed_z0
        # 1 − σ(x) = σ(−x), without the cancellation
        return (self.desirable_weight * (point - winner).sigmoid() + self.undesirable_weight * (loser - point).sigmoid()) / 2


@register_loss
class FixedShiftBCO(PairwiseLoss):
    """ℓ = ½[−log σ(β·lr_w − δ) − log σ(δ − β·lr_l)] — Binary Classifier Optimization, arXiv 2404.04656, at a fixed δ.

    In the paper and in TRL δ is a running mean of β·lr over both classes. For every δ, 2ℓ is an upper bound of dpo's ℓ (the
    paper's theorem); a δ far from that mean only makes it looser. The paper's density-ratio weights on the undesirable
    responses are left out: h plays that role here.
    """

    name: Literal["bco"] = "bco"
    fixed_delta: float = Field(0.0, ge=-1000, le=1000, description="δ: threshold on β·lr; the paper uses a running mean.")

    offset: ClassVar[str] = "ℓ > 0; log 2 at the reference if δ = 0, 0 for a perfectly classified pair"

    def of_pair(self, winner: Tensor, loser: Tensor) -> Tensor:
        return -(logsigmoid(winner - self.fixed_delta) + logsigmoid(self.fixed_delta - loser)) / 2
