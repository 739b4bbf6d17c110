"""Robust objectives: how the losses ℓ and calibration factors h of one optimisation step become one number.

Every objective here is ``V = A · κ · log( Σ b_i e^{s_i} / Σ b_i^0 )`` or a plain weighted mean, and its gradient is
``Σ_i A · g_i · p_i · ∇ℓ_i`` with ``p = softmax(s + log b)``. :class:`Terms` holds (g, s, log b) per record, which is all that
``dora_core/objectives/global_batch.py`` needs to build the exact gradient of the whole global batch from micro-batches. The closed form
of an objective (calling it) is written apart from its terms, so that each checks the other in the tests.

λ has the unit of h·ℓ. λ → ∞ gives ``reweight`` (``dora``), ``erm`` (``dro``, ``dr_dpo``); small λ weighs only the
worst record. ``dora`` is not invariant to a shift of ℓ: for ``lire`` (ℓ < 0) a large h tilts weight *away* from a record.
``dora_core/objectives/lambda_control.py`` chooses λ.

Shape legend: B records. Source: arXiv 2504.05831. Dr.DPO: arXiv 2407.07880.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dora_core.lazy_torch import torch
from dora_core.objectives.base import Objective, StepSums, Terms, register_objective

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_WEIGHT = 10.0
"""Limit of the weights of ``kldpo``, as in the authors' code."""


def _log_mean_exp(scores_B: Tensor) -> Tensor:
    return torch.logsumexp(scores_B, dim=0) - math.log(scores_B.shape[0])


@register_objective
class ERM(Objective):
    """mean ℓ."""

    name = "erm"
    uses_lambda = False

    def __call__(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Tensor:
        return losses_B.mean()

    def terms(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Terms:
        zero = torch.zeros_like(losses_B)
        return Terms(torch.ones_like(losses_B), zero, zero)

    def value(self, sums: StepSums, lam: float) -> float:
        return sums.mean_slope_loss


@register_objective
class Reweight(ERM):
    """mean h·ℓ."""

    name = "reweight"
    uses_factors = True

    def __call__(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Tensor:
        return (factors_B * losses_B).mean()

    def terms(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Terms:
        zero = torch.zeros_like(losses_B)
        return Terms(factors_B, zero, zero)


@register_objective
class Auto(Reweight):
    """mean w·ℓ with record weights w that the race chose (``dora_core/selection/race.py``).

    Where the race chose another objective instead, ``align`` trains that one: a training never runs under this name.
    """

    name = "auto"


@register_objective
class DRO(Objective):
    """λ log mean exp(ℓ/λ): the KL-constrained worst case around the mixture."""

    name = "dro"

    def __call__(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Tensor:
        return lam * _log_mean_exp(losses_B / lam)

    def terms(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Terms:
        return Terms(torch.ones_like(losses_B), losses_B / lam, torch.zeros_like(losses_B))


@register_objective
class DoRA(Objective):
    """λ log mean exp(h·ℓ/λ): the paper's objective."""

    name = "dora"
    uses_factors = True

    def __call__(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Tensor:
        return lam * _log_mean_exp(factors_B * losses_B / lam)

    def terms(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Terms:
        return Terms(factors_B, factors_B * losses_B / lam, torch.zeros_like(losses_B))

    def opposes_factors(self, losses_B: Tensor) -> bool:
        return bool(losses_B.mean() < 0)


@register_objective
class DoRAOuter(DRO):
    """mean(h) · λ log mean exp(ℓ/λ): the paper's ablation row, and the LIRE branch of the released code."""

    name = "dora_outer"
    uses_factors = True

    def __call__(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Tensor:
        return factors_B.mean() * super().__call__(losses_B, factors_B, lam)

    def outer(self, sums: StepSums) -> float:
        return sums.mean_factor

    def value(self, sums: StepSums, lam: float) -> float:
        return sums.mean_factor * lam * sums.log_mean_exp


@register_objective
class DoRATilted(Objective):
    """λ log mean[h·exp(ℓ/λ)], h normalised to mean 1: the worst case around the *estimated golden distribution*.

    Unlike ``dora`` it moves by exactly c when every ℓ does.
    """

    name = "dora_tilted"
    uses_factors = True

    def __call__(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Tensor:
        return lam * (torch.logsumexp(factors_B.log() + losses_B / lam, dim=0) - factors_B.sum().log())

    def terms(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Terms:
        return Terms(torch.ones_like(losses_B), losses_B / lam, factors_B.log())

    def value(self, sums: StepSums, lam: float) -> float:
        return lam * (sums.log_mean_exp - math.log(sums.mean_factor)) if sums.mean_factor > 0 else 0.0


@register_objective
class KLDPO(ERM):
    """mean p·ℓ, p = sg(min(exp((ℓ − mean ℓ)/λ), 10)): KLDPO, arXiv 2502.01930; λ is the paper's τ.

    The paper's algorithm has p ∝ exp((ℓ − mean ℓ)/τ), which is ``dro`` exactly; the authors' code, followed here, does not normalise p and
    limits it, so that the step is larger where losses spread. There mean ℓ is over one micro-batch of every rank, here over the step.
    """

    name = "kldpo"
    uses_lambda = True
    looks_ahead = True

    def __call__(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Tensor:
        return (((losses_B - losses_B.mean()) / lam).clamp(max=math.log(LARGEST_WEIGHT)).exp().detach() * losses_B).mean()

    def look_ahead(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> float:
        return float(losses_B.mean())

    def terms_given(self, ahead: float, losses_B: Tensor, factors_B: Tensor, lam: float) -> Terms:
        zero = torch.zeros_like(losses_B)
        return Terms(((losses_B - ahead) / lam).exp().clamp(max=LARGEST_WEIGHT), zero, zero)

    def terms(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Terms:
        return self.terms_given(self.look_ahead(losses_B, factors_B, lam), losses_B, factors_B, lam)


@register_objective
class DrDPO(Objective):
    """−λ log mean exp(−ℓ/λ): the opposite sign, it down-weights records of high loss (noise rather than shift)."""

    name = "dr_dpo"

    def __call__(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Tensor:
        return -lam * _log_mean_exp(-losses_B / lam)

    def terms(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Terms:
        return Terms(torch.ones_like(losses_B), -losses_B / lam, torch.zeros_like(losses_B))

    def value(self, sums: StepSums, lam: float) -> float:
        return -lam * sums.log_mean_exp
