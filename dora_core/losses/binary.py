"""Losses on single desirable or undesirable responses, with a *fixed* reference point.

KTO and BCO compare β·lr with a quantity of the whole batch: KTO's z0, BCO's δ. Here a loss never couples records: the robust
objective weighs each one by its own ℓ, and a coupled ℓ would make the micro-batch size a hidden hyper-parameter. A
within-record estimate does not help: for BCO it would be δ = β(lr_w + lr_l)/2, which turns the loss into dpo at β/2 and
removes its binary character. So both are parameters, constant over the run: an **approximation** of the papers, named so.

In a record with preferences the winner of a pair is desirable and the loser undesirable, and ℓ is the mean over these two
examples, hence the ½. In an unpaired record (one response with a label) ℓ is that of the one example, without the ½. So a pair
has the mean ℓ of the two unpaired records that it consists of, and the mean over a data set does not change when its pairs are
split up; a record weighs 1 in the objective in both cases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dora_core.lazy_torch import logsigmoid, torch
from dora_core.losses.base import PreferenceBatch, register_loss
from dora_core.losses.pairwise import PairwiseLoss

if TYPE_CHECKING:
    from torch import Tensor


class BinaryLoss(PairwiseLoss):
    """ℓ = f_D(s) of a desirable response, f_U(s) of an undesirable one, ½[f_D(s_w) + f_U(s_l)] of a pair; s = β·lr.

    A subclass implements ``of_desirable`` (f_D) and ``of_undesirable`` (f_U).
    """

    reads_unpaired: ClassVar[bool] = True

    def of_desirable(self, score: Tensor) -> Tensor:
        """Compute f_D elementwise."""
        raise NotImplementedError

    def of_undesirable(self, score: Tensor) -> Tensor:
        """Compute f_U elementwise."""
        raise NotImplementedError

    def of_pair(self, winner: Tensor, loser: Tensor) -> Tensor:
        return (self.of_desirable(winner) + self.of_undesirable(loser)) / 2

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        score_B = batch.of_best(torch.where(batch.measured_BN, self.scores(batch), 0.0))
        single_B = torch.where(batch.desirable_B, self.of_desirable(score_B), self.of_undesirable(score_B))
        if batch.label_probability_B is not None:
            single_B = batch.mixed(single_B, torch.where(batch.desirable_B, self.of_undesirable(score_B), self.of_desirable(score_B)))
        return torch.where(batch.unpaired_B, single_B, super().__call__(batch))


@register_loss
class FixedPointKTO(BinaryLoss):
    """ℓ_D = λ_D(1 − σ(β·lr − β·z0)), ℓ_U = λ_U(1 − σ(β·z0 − β·lr)), ½(ℓ_D + ℓ_U) of a pair — KTO, arXiv 2402.01306, at a fixed z0.

    In the paper and in TRL z0 = max(0, mean log-ratio of mismatched prompt-response pairs of the batch), an estimate of
    KL(π ‖ π_ref) without gradient. The default 0 is its value at the reference and its lower bound; at λ_D = λ_U it is APO-zero,
    arXiv 2408.06266, up to a factor and a constant. With unequal numbers of desirable and undesirable records the paper advises
    λ_D·n_D / (λ_U·n_U) between 1 and 4/3.
    """

    name: Literal["kto"] = "kto"
    desirable_weight: float = Field(1.0, gt=0, le=100, description="λ_D: weight of the preferred response.")
    undesirable_weight: float = Field(1.0, gt=0, le=100, description="λ_U: weight of the other response.")
    fixed_z0: float = Field(0.0, ge=0, le=1000, description="z0: reference point of lr, nats; the paper estimates KL(π ‖ π_ref) per batch.")

    offset: ClassVar[str] = (
        "0 < ℓ < (λ_D + λ_U)/2; half of that at the reference if z0 = 0, 0 for a perfectly classified pair; "
        "of one labelled response 0 < ℓ < λ_D or λ_U"
    )

    def of_desirable(self, score: Tensor) -> Tensor:
        # 1 − σ(x) = σ(−x), without the cancellation
        return self.desirable_weight * (self.beta * self.fixed_z0 - score).sigmoid()

    def of_undesirable(self, score: Tensor) -> Tensor:
        return self.undesirable_weight * (score - self.beta * self.fixed_z0).sigmoid()


@register_loss
class FixedShiftBCO(BinaryLoss):
    """ℓ_D = −log σ(β·lr − δ), ℓ_U = −log σ(δ − β·lr), ½(ℓ_D + ℓ_U) of a pair — BCO, arXiv 2404.04656, at a fixed δ.

    In the paper (Binary Classifier Optimization) and in TRL δ is a running mean of β·lr over both classes. For every δ, 2ℓ of a
    pair is an upper bound of dpo's ℓ (the paper's theorem); a δ far from that mean only makes it looser. The paper's
    density-ratio weights on the undesirable responses are left out: h plays that role here.
    """

    name: Literal["bco"] = "bco"
    fixed_delta: float = Field(0.0, ge=-1000, le=1000, description="δ: threshold on β·lr; the paper uses a running mean.")

    offset: ClassVar[str] = "ℓ > 0; log 2 at the reference if δ = 0, 0 for a perfectly classified pair or labelled response"

    def of_desirable(self, score: Tensor) -> Tensor:
        return -logsigmoid(score - self.fixed_delta)

    def of_undesirable(self, score: Tensor) -> Tensor:
        return -logsigmoid(self.fixed_delta - score)
