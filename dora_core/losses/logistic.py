"""Bradley-Terry likelihoods −log σ(margin): ``dpo`` and its relatives, which differ in the score of a response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from dora_core.lazy_torch import logsigmoid
from dora_core.losses.base import PreferenceBatch, register_loss
from dora_core.losses.pairwise import MarginLoss

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_LOG_RATIO = 20.0
"""Largest log π/π_ref that ``chi_po`` exponentiates: e^20 · β is far beyond every clip, and inside the range of bfloat16."""


@register_loss
class DPO(MarginLoss):
    """ℓ = −log σ(β(lr_w − lr_l)) — Direct Preference Optimization, arXiv 2305.18290, equation 7."""

    name: Literal["dpo"] = "dpo"

    offset: ClassVar[str] = "ℓ > 0; log 2 at the reference, 0 for a perfectly separated pair"

    def of_margin(self, margin: Tensor) -> Tensor:
        return -logsigmoid(margin)


@register_loss
class RDPO(MarginLoss):
    """ℓ = −log σ(β(lr_w − lr_l) + a(|y_w| − |y_l|)) — R-DPO, arXiv 2403.19159.

    The plus sign follows from maximising E[r − a|y|] − β KL: its optimum has r = β·lr + a|y| + const. A preferred response that
    is also longer then needs less log-ratio, which is what discourages length.
    """

    name: Literal["r_dpo"] = "r_dpo"
    length_penalty: float = Field(0.001, ge=0, le=1, description="a: reward that one response token costs.")

    offset: ClassVar[str] = "ℓ > 0; log(1 + e^−a(|y_w| − |y_l|)) at the reference, 0 for a perfectly separated pair"

    def scores(self, batch: PreferenceBatch) -> Tensor:
        return super().scores(batch) + self.length_penalty * batch.token_counts_BN

    def of_margin(self, margin: Tensor) -> Tensor:
        return -logsigmoid(margin)


@register_loss
class LnDPO(MarginLoss):
    """ℓ = −log σ(β(lr_w/|y_w| − lr_l/|y_l|)) — length-normalised DPO, arXiv 2411.15124 (β = 5 there)."""

    name: Literal["ln_dpo"] = "ln_dpo"
    beta: float = Field(5.0, gt=0, le=100, description="β on log-ratios per token; larger than DPO's, which is on their sum.")

    offset: ClassVar[str] = "ℓ > 0; log 2 at the reference, 0 for a perfectly separated pair"

    def scores(self, batch: PreferenceBatch) -> Tensor:
        return super().scores(batch) / batch.token_counts_BN

    def of_margin(self, margin: Tensor) -> Tensor:
        return -logsigmoid(margin)


@register_loss
class SimPO(MarginLoss):
    """ℓ = −log σ(β(p_w − p_l) − γ), p = log π/|y| — SimPO, arXiv 2405.14734, equation 6. Reference-free.

    Parametrised by γ/β, the margin in nats per token, because γ alone means nothing without β. The paper's repository uses β 2 to
    10 and γ/β .25 to .8; TRL's and Liger's defaults (β .1, γ .5) mean γ/β = 5: 5 nats per token.
    """

    name: Literal["simpo"] = "simpo"
    beta: float = Field(2.0, ge=1, le=100, description="β on average log-probabilities per token.")
    gamma_beta_ratio: float = Field(0.5, ge=0, le=10, description="γ/β: target margin, nats per token.")

    offset: ClassVar[str] = "ℓ > 0; log(1 + e^γ) when both responses are equally likely per token, 0 for a perfectly separated pair"

    @field_validator("beta", mode="before")
    @classmethod
    def _per_token(cls, beta: Any) -> Any:
        if isinstance(beta, int | float) and beta < 1:
            raise ValueError(
                "must be at least 1 for simpo, usually 2 to 10: it scales log-probabilities per token, not their sum as in dpo"
            )
        return beta

    def scores(self, batch: PreferenceBatch) -> Tensor:
        return self.beta * batch.average_logps_BN

    def of_margin(self, margin: Tensor) -> Tensor:
        return -logsigmoid(margin - self.gamma_beta_ratio * self.beta)


@register_loss
class RPO(MarginLoss):
    """ℓ = −log σ(β(lr_w − lr_l)) − α·log π(y_best)/|y_best| — DPO with an SFT term, arXiv 2404.19733, equation 1."""

    name: Literal["rpo"] = "rpo"
    sft_weight: float = Field(1.0, ge=0, le=100, description="α: weight of the best response's negative log-probability per token.")

    offset: ClassVar[str] = "ℓ > 0; log 2 + α × nats per token of the best response at the reference: a shift that differs by record"

    def of_margin(self, margin: Tensor) -> Tensor:
        return -logsigmoid(margin)

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        return super().__call__(batch) - self.sft_weight * batch.of_preferred(batch.average_logps_BN)


@register_loss
class ChiPO(MarginLoss):
    """ℓ = −log σ(clip(β[φ(r_w) − φ(r_l)], ±2R)), φ(r) = r + log r, r = π/π_ref — χPO, arXiv 2407.13399, algorithm 1.

    dpo with the χ² divergence beside the KL: a response that gains much likelihood counts exponentially, so that the policy is pessimistic
    about what the data hardly cover. R bounds the reward; beyond a margin of 2R a pair has no gradient. r overflows for long responses, so
    log r is limited to :data:`LARGEST_LOG_RATIO` inside the exponential (not in the paper's formula). The default R is ours.
    """

    name: Literal["chi_po"] = "chi_po"
    largest_reward: float = Field(5.0, gt=0, le=1000, description="R: bound on the reward; margins are clipped to ±2R.")

    offset: ClassVar[str] = "log(1 + e^−2R) ≤ ℓ ≤ log(1 + e^2R); log 2 at the reference"

    def scores(self, batch: PreferenceBatch) -> Tensor:
        ratio_BN = batch.log_ratios_BN.clamp(max=LARGEST_LOG_RATIO).exp()
        return self.beta * (ratio_BN + batch.log_ratios_BN)

    def of_margin(self, margin: Tensor) -> Tensor:
        return -logsigmoid(margin.clamp(-2 * self.largest_reward, 2 * self.largest_reward))
