"""Variants of DPO for data in which some preferences are flipped: a known share ε, an unknown one, or by a known chance of each label."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dora_core.lazy_torch import logsigmoid, torch
from dora_core.losses.base import PreferenceBatch, register_loss
from dora_core.losses.pairwise import MarginLoss

if TYPE_CHECKING:
    from torch import Tensor


@register_loss
class CDPO(MarginLoss):
    """ℓ = −(1−ε) log σ(m) − ε log σ(−m), m = β(lr_w − lr_l) — conservative DPO, ericmitchell.ai/cdpo.pdf.

    The minimum lies at σ(m) = 1−ε, where the margin stops growing.
    """

    name: Literal["cdpo"] = "cdpo"
    epsilon: float = Field(0.1, ge=0, lt=0.5, description="ε: probability that a preference is flipped.")

    offset: ClassVar[str] = "ℓ ≥ −(1−ε)log(1−ε) − ε log ε, reached at m = log((1−ε)/ε); log 2 at the reference"

    def of_margin(self, margin: Tensor) -> Tensor:
        return -(1 - self.epsilon) * logsigmoid(margin) - self.epsilon * logsigmoid(-margin)


@register_loss
class RobustDPO(MarginLoss):
    """ℓ = [−(1−ε) log σ(m) + ε log σ(−m)] / (1−2ε), m = β(lr_w − lr_l) — rDPO, arXiv 2403.00409.

    Its mean over flips of probability ε is DPO's ℓ on the clean preference (hence the factor 1/(1−2ε)).
    """

    name: Literal["robust_dpo"] = "robust_dpo"
    epsilon: float = Field(0.1, ge=0, lt=0.5, description="ε: probability that a preference is flipped.")

    offset: ClassVar[str] = "unbounded below (≈ −ε·m/(1−2ε) for a large margin m); log 2 at the reference"

    def of_margin(self, margin: Tensor) -> Tensor:
        return (self.epsilon * logsigmoid(-margin) - (1 - self.epsilon) * logsigmoid(margin)) / (1 - 2 * self.epsilon)


@register_loss
class ROPO(MarginLoss):
    """ℓ = −a·log σ(m) + b·σ(−m), a = 4α/(1+α)², b = 4α²/(1+α)², m = β(lr_w − lr_l) — ROPO, arXiv 2404.04102, equation 9.

    The gradient's size in m is s(a + b(1−s)), s = σ(−m). Unlike dpo's, s, it falls again where the policy disagrees most with the label,
    and its maximum, at s = (1+α)/(2α), is 1, dpo's supremum: that fixes a and b. α → ∞ leaves the term σ(−m), bounded and symmetric,
    which a flipped label cannot pull far. The paper's filtering of noisy records and its rejection sampling are left out, and the
    default α is ours.
    """

    name: Literal["ropo"] = "ropo"
    alpha: float = Field(6.0, gt=1, le=1000, description="α: weight of the bounded term; larger trusts labels less.")

    offset: ClassVar[str] = "ℓ > 0; a·log 2 + b/2 at the reference (1.81 at α = 6), 0 for a perfectly separated pair"

    def of_margin(self, margin: Tensor) -> Tensor:
        scale = 4 * self.alpha / (1 + self.alpha) ** 2
        return scale * (self.alpha * (-margin).sigmoid() - logsigmoid(margin))


@register_loss
class DPOPRO(MarginLoss):
    """ℓ = q·ℓ(m) + (1−q)·ℓ(−m) + r·|m|, ℓ(m) = −log σ(m) — DPO-PRO, arXiv 2509.02709 and 2510.23590.

    The worst case of a soft label over the χ² ball of radius ρ around q (``batch.label_probability_B``): r = √(ρ·q(1−q)), because
    ℓ(−m) − ℓ(m) = m, but no more than q for m > 0 and 1 − q for m < 0, as a probability ends at 0 and 1. A label of q = 1 is left as it
    is; so data without label probabilities would make this ``dpo``, and are refused.
    """

    needs_label_probability: ClassVar[bool] = True

    name: Literal["dpo_pro"] = "dpo_pro"
    rho: float = Field(0.1, ge=0, le=100, description="ρ: radius of the χ² ball around each label's probability.")

    offset: ClassVar[str] = "ℓ ≥ the entropy of q; log 2 at the reference"

    def of_margin(self, margin: Tensor) -> Tensor:
        return -logsigmoid(margin)

    def of_labelled(self, winner: Tensor, loser: Tensor, batch: PreferenceBatch) -> Tensor:
        losses = super().of_labelled(winner, loser, batch)
        if batch.label_probability_B is None:
            return losses
        margin = winner - loser
        q = batch.label_probability_B.reshape(-1, *[1] * (margin.dim() - 1))
        room = torch.where(margin > 0, q, 1 - q)
        return losses + torch.minimum((self.rho * q * (1 - q)).sqrt(), room) * margin.abs()
