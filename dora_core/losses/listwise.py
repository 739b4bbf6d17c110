"""Losses on a whole list of responses. Shape legend in ``base.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dora_core.lazy_torch import logsigmoid, torch
from dora_core.losses.base import PreferenceBatch, PreferenceLoss, register_loss

if TYPE_CHECKING:
    from torch import Tensor


@register_loss
class DPOPL(PreferenceLoss):
    """ℓ = Σ_k [logsumexp_{j ≥ k}(β·lr_j) − β·lr_k], best first — Plackett-Luce DPO, arXiv 2305.18290, appendix A.3.

    Written without sorting: response k competes with itself and every response of strictly smaller reward. That is the
    formula above when rewards differ, and makes tied responses compete only with what is below both. Equals ``dpo`` at N = 2.

    With a soft label the list is in the order of its rewards with probability q, else in the reverse order (ours; ``dpo``'s at N = 2).
    """

    reads_label_probability: ClassVar[bool] = True

    name: Literal["dpo_pl"] = "dpo_pl"
    beta: float = Field(0.1, gt=0, le=100, description="β: strength of the pull towards the reference.")

    offset: ClassVar[str] = "ℓ > 0; log N! at the reference (N responses, no ties), 0 for a perfectly separated list"

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        scores_BN = self.beta * batch.log_ratios_BN
        right_B = self._of_order(scores_BN, batch.beats_BNN)
        if batch.label_probability_B is None:
            return right_B
        return batch.mixed(right_B, self._of_order(scores_BN, batch.beats_BNN.transpose(1, 2)))

    @staticmethod
    def _of_order(scores_BN: Tensor, beats_BNN: Tensor) -> Tensor:
        itself_NN = torch.eye(scores_BN.shape[1], dtype=torch.bool, device=scores_BN.device)
        normalizer_BN = scores_BN[:, None, :].masked_fill(~(beats_BNN | itself_NN), -torch.inf).logsumexp(dim=2)
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


@register_loss
class RRHF(PreferenceLoss):
    """ℓ = Σ_{r_i < r_j} max(0, p_i − p_j) − p_best, p = log π/|y| — RRHF, arXiv 2304.05302. Reference-free."""

    name: Literal["rrhf"] = "rrhf"
    sft_weight: float = Field(1.0, ge=0, le=100, description="Weight of the best response's negative log-probability per token.")

    offset: ClassVar[str] = "ℓ ≥ 0; sft_weight × nats per token of the best response when the list is ranked right: differs by record"

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        average_BN = batch.average_logps_BN
        inversions_BNN = (average_BN[:, None, :] - average_BN[:, :, None]).relu()
        ranking_B = torch.where(batch.beats_BNN, inversions_BNN, 0.0).sum(dim=(1, 2))
        return ranking_B - self.sft_weight * batch.of_best(average_BN)


@register_loss
class PRO(PreferenceLoss):
    """ℓ = Σ_k [log Σ_{i ≥ k} e^{p_i/T_k^i} − p_k/T_k^k] − w(N−1)² log π(y_best) — Preference Ranking Optimization, arXiv 2306.17492.

    Best first, p = log π/|y|, 1/T_k^i = r_k − r_i, 1/T_k^k = max_i (r_k − r_i), N measured responses; as in the authors' code the
    SFT term is the *sum* over tokens. Reference-free. Besides ``lire`` the only loss here that reads the size of reward
    differences: their scale matters. Tied responses do not compete with each other.
    """

    name: Literal["pro"] = "pro"
    sft_weight: float = Field(0.05, ge=0, le=100, description="w: weight of the best response's negative log-probability, × (N−1)².")

    offset: ClassVar[str] = "ℓ > 0; the SFT term w(N−1)²·(−log π(y_best)) dominates it and differs by record and length"

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        gaps_BNN = torch.where(batch.beats_BNN, batch.rewards_BN[:, :, None] - batch.rewards_BN[:, None, :], 0.0)
        average_BN = batch.average_logps_BN
        own_BN = gaps_BNN.amax(dim=2) * average_BN
        beaten_BNN = (gaps_BNN * average_BN[:, None, :]).masked_fill(~batch.beats_BNN, -torch.inf)
        normalizer_BN = torch.cat([own_BN[:, :, None], beaten_BNN], dim=2).logsumexp(dim=2)
        others_B = batch.measured_BN.sum(dim=1) - 1
        likelihood_B = batch.of_best(torch.where(batch.mask_BN, batch.policy_logps_BN, 0.0))
        return (normalizer_BN - own_BN).sum(dim=1) - self.sft_weight * likelihood_B * others_B.square()


@register_loss
class D2O(PreferenceLoss):
    """ℓ = −log σ(β·mean_i lr_i − α·lr_worst), i over the K responses better than the worst — D²O, arXiv 2403.03419.

    Distributional dispreference: the K responses stand for a distribution to stay with, the worst is the one to leave. In the paper they
    are samples of the policy itself and the worst is labelled by people; its two references (a helpful one for the worst response, a
    harmful one for the K) are here the one reference. Equals ``dpo`` at K = 1, α = β.
    """

    name: Literal["d2o"] = "d2o"
    beta: float = Field(0.1, gt=0, le=100, description="β: scale of the mean log-ratio of the better responses.")
    alpha: float = Field(0.1, gt=0, le=100, description="α: scale of the worst response's log-ratio.")

    offset: ClassVar[str] = "ℓ > 0; log 2 at the reference, 0 for a perfectly separated list"

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        worst_B = batch.best_worst[1]
        better_BN = batch.beats_BNN.gather(2, worst_B[:, None, None].expand(-1, batch.mask_BN.shape[1], 1)).squeeze(2)
        total_B = torch.where(better_BN, batch.log_ratios_BN, 0.0).sum(dim=1)
        mean_B = total_B / better_BN.sum(dim=1).clamp(min=1)
        return -logsigmoid(self.beta * mean_B - self.alpha * batch.of_worst(batch.log_ratios_BN))


def _masked_softmax(scores_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Softmax over the last dimension; 0 where masked. Finite filling keeps a fully masked row and its gradient free of NaN."""
    filled_BN = torch.where(mask_BN, scores_BN, torch.finfo(scores_BN.dtype).min)
    return filled_BN.softmax(dim=-1) * mask_BN
