"""Variants of DPO for data in which a known share ε of the preferences is flipped."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dora_core.lazy_torch import logsigmoid
from dora_core.losses.base import register_loss
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
