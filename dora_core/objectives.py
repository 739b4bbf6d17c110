"""Robust objectives: how the losses ℓ and calibration factors h of one optimisation step become one number.

Every objective here is ``V = A · κ · log( Σ b_i e^{s_i} / Σ b_i^0 )`` or a plain weighted mean, and its gradient is
``Σ_i A · g_i · p_i · ∇ℓ_i`` with ``p = softmax(s + log b)``. :class:`Terms` holds (g, s, log b) per record, which is all that
``dora_core/accumulation.py`` needs to build the exact gradient of the whole global batch from micro-batches. The
closed forms are in :func:`value`, written apart from :class:`Terms` so that each checks the other in the tests.

What λ means: it has the unit of h·ℓ. λ → ∞ gives ``reweight`` (``dora``), ``erm`` (``dro``, ``dr_dpo``); small λ looks only at the
worst record. ``dora`` is not invariant to a shift of ℓ: for ``lire`` (ℓ < 0) a large h tilts weight *away* from a record.

Source: arXiv 2504.05831; DESIGN section 2. Dr.DPO: arXiv 2407.07880.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dora_core.config import ObjectiveConfig


def value(losses_B: Tensor, factors_B: Tensor, config: ObjectiveConfig) -> Tensor:
    """The objective over one full batch, differentiable in ``losses_B``; factors are constants.

    Args:
        losses_B: unreduced ℓ, shape (B,).
        factors_B: record factors h ≥ 0, shape (B,).

    Returns:
        Scalar.
    """
    loss, h, lam = losses_B, factors_B.to(losses_B.dtype), config.lam
    match config.name:
        case "erm":
            return loss.mean()
        case "reweight":
            return (h * loss).mean()
        case "dro":
            return lam * _log_mean_exp(loss / lam)
        case "dora":
            return lam * _log_mean_exp(h * loss / lam)
        case "dora_outer":
            return h.mean() * lam * _log_mean_exp(loss / lam)
        case "dora_tilted":
            return lam * (torch.logsumexp(h.log() + loss / lam, dim=0) - h.sum().log())
        case "dr_dpo":
            return -lam * _log_mean_exp(-loss / lam)


def _log_mean_exp(scores_B: Tensor) -> Tensor:
    return torch.logsumexp(scores_B, dim=0) - math.log(scores_B.shape[0])


@dataclass(frozen=True)
class Terms:
    """Per-record parts of an objective, float64 and without gradient: slope g, exponent s, log base measure log b."""

    slope_B: Tensor
    exponent_B: Tensor
    log_base_B: Tensor


def terms(losses_B: Tensor, factors_B: Tensor, config: ObjectiveConfig) -> Terms:
    """See the module docstring; a plain mean has s = 0 and b = 1, so that p_i = 1/B."""
    loss, h = losses_B.detach().double(), factors_B.detach().double()
    one, zero = torch.ones_like(loss), torch.zeros_like(loss)
    match config.name:
        case "erm":
            return Terms(one, zero, zero)
        case "reweight":
            return Terms(h, zero, zero)
        case "dro" | "dora_outer":
            return Terms(one, loss / config.lam, zero)
        case "dora":
            return Terms(h, h * loss / config.lam, zero)
        case "dora_tilted":
            return Terms(one, loss / config.lam, h.log())
        case "dr_dpo":
            return Terms(one, -loss / config.lam, zero)
