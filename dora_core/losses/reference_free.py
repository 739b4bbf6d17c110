"""Losses without a reference that also imitate the preferred response (``simpo``, which does not, is in ``logistic.py``).

In all of them the imitated response is the best one; where a label is right with probability q, the best with q and the worst with 1 − q.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dora_core.lazy_torch import logsigmoid, torch
from dora_core.losses.base import PreferenceBatch, PreferenceLoss, register_loss
from dora_core.losses.pairwise import MarginLoss, PairwiseLoss

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_AVERAGE = -1e-6
"""Upper limit of p in log(1 − e^p): a response that the policy writes with certainty has no finite odds. Above it there is no gradient."""


@register_loss
class SFT(PreferenceLoss):
    """ℓ = −log π(y_best)/|y_best|: imitation of the best response, the others unread. A part for ``mpo``, a baseline by itself."""

    reads_label_probability: ClassVar[bool] = True

    name: Literal["sft"] = "sft"

    offset: ClassVar[str] = "ℓ ≥ 0; nats per token of the best response"

    @property
    def reads_pairs_only(self) -> bool:
        return True

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        return -batch.of_preferred(batch.average_logps_BN)


@register_loss
class CPO(MarginLoss):
    """ℓ = −log σ(β(log π_w − log π_l)) − α·log π(y_best)/|y_best| — Contrastive Preference Optimization, arXiv 2401.08417.

    The paper's objective L_prefer + L_NLL, dpo with a uniform reference and an imitation term. The paper sums the imitation term over
    tokens; the authors' code averages it, as here, but over all tokens of a batch instead of by record.
    """

    name: Literal["cpo"] = "cpo"
    beta: float = Field(0.1, gt=0, le=100, description="β on log-probabilities.")
    sft_weight: float = Field(1.0, ge=0, le=100, description="α: weight of the best response's negative log-probability per token.")

    offset: ClassVar[str] = "ℓ > 0; log 2 + α × nats per token where both responses are equally likely: a shift that differs by record"

    def scores(self, batch: PreferenceBatch) -> Tensor:
        return self.beta * batch.policy_logps_BN

    def of_margin(self, margin: Tensor) -> Tensor:
        return -logsigmoid(margin)

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        return super().__call__(batch) - self.sft_weight * batch.of_preferred(batch.average_logps_BN)


@register_loss
class ORPO(MarginLoss):
    """ℓ = −p_best − β·log σ(log odds_w − log odds_l), odds = P/(1−P), P = e^p, p = log π/|y| — ORPO, arXiv 2403.07691, equation 6.

    β is the paper's λ: here it weighs the term instead of scaling the margin.
    """

    name: Literal["orpo"] = "orpo"
    beta: float = Field(0.1, gt=0, le=100, description="λ of the paper: weight of the odds-ratio term.")

    offset: ClassVar[str] = "ℓ > 0; β·log 2 + nats per token where both responses are equally likely per token: differs by record"

    def scores(self, batch: PreferenceBatch) -> Tensor:
        return _log_odds(batch.average_logps_BN)

    def of_margin(self, margin: Tensor) -> Tensor:
        return -self.beta * logsigmoid(margin)

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        return super().__call__(batch) - batch.of_preferred(batch.average_logps_BN)


@register_loss
class ASFT(PairwiseLoss):
    """ℓ = −p_best − β[log σ(log odds_w) + log σ(−log odds_l)], log odds as in ``orpo`` — ASFT, arXiv 2409.10571.

    σ(log odds) = P, so the bracket is p_w + log(1 − e^{p_l}), p = log π/|y|. Aligned supervised fine-tuning by absolute likelihood: unlike
    ``orpo`` the two responses do not meet in one margin. The paper has β = 1.
    """

    name: Literal["asft"] = "asft"
    beta: float = Field(1.0, gt=0, le=100, description="β: weight of the alignment term.")

    offset: ClassVar[str] = "ℓ > 0; (1 + β) × nats per token of the best response if the other is impossible: differs by record"

    def scores(self, batch: PreferenceBatch) -> Tensor:
        return batch.average_logps_BN

    def of_pair(self, winner: Tensor, loser: Tensor) -> Tensor:
        return -self.beta * (winner + _log1mexp(loser))

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        return super().__call__(batch) - batch.of_preferred(batch.average_logps_BN)


def _log_odds(logs: Tensor) -> Tensor:
    """log(e^x / (1 − e^x)), x limited to :data:`LARGEST_AVERAGE`."""
    return logs.clamp(max=LARGEST_AVERAGE) - _log1mexp(logs)


def _log1mexp(logs: Tensor) -> Tensor:
    """log(1 − e^x), x limited to :data:`LARGEST_AVERAGE`; by log(−expm1) near 0 and log1p(−e^x) far from it, each where it is exact."""
    limited = logs.clamp(max=LARGEST_AVERAGE)
    near = (-limited.clamp(min=-math.log(2.0)).expm1()).log()
    far = (-limited.clamp(max=-math.log(2.0)).exp()).log1p()
    return torch.where(limited > -math.log(2.0), near, far)
