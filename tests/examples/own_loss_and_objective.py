"""Register a loss and an objective of your own, then use both by name in a configuration.

In a project of yours the two classes live in one file named by ``DORA_PLUGINS``; here the decorators run in this script. Losses are
unreduced: one ℓ per record. The objective combines the records of an optimisation step.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dora_core.config.alignment import AlignConfig
from dora_core.losses import MarginLoss, PreferenceBatch, register_loss
from dora_core.objectives import Objective, Terms, find_objective, register_objective


@register_loss
class SquaredHinge(MarginLoss):
    """ℓ = max(0, 1 − β(lr_w − lr_l))²: the hinge, smooth at its kink."""

    name: Literal["squared_hinge"] = "squared_hinge"
    offset: ClassVar[str] = "ℓ ≥ 0; 1 at the reference, 0 beyond a margin of 1/β"

    def of_margin(self, margin: Tensor) -> Tensor:
        return (1 - margin).clamp(min=0).square()


@register_objective
class DoRAFloor(Objective):
    """λ log mean exp(max(h, ½)·ℓ/λ): every record keeps at least half of the weight of h = 1."""

    name = "dora_floor"
    uses_factors = True

    def __call__(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Tensor:
        return lam * torch.logsumexp(factors_B.clamp(min=0.5) * losses_B / lam, dim=0) - lam * math.log(len(losses_B))

    def terms(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Terms:
        h = factors_B.clamp(min=0.5)
        return Terms(slope_B=h, exponent_B=h * losses_B / lam, log_base_B=torch.zeros_like(h))


def main() -> tuple[list[float], float]:
    """Return the losses of two records and the objective over both."""
    config = AlignConfig.model_validate(
        {"loss": {"name": "squared_hinge", "beta": 0.2}, "objective": {"name": "dora_floor", "lambda": 1.0}}
    )
    batch = PreferenceBatch(
        policy_logps_BN=torch.tensor([[-4.0, -7.0], [-6.0, -5.0]]),
        reference_logps_BN=torch.tensor([[-6.0, -6.0], [-6.0, -6.0]]),
        lengths_BN=torch.tensor([[5.0, 5.0], [5.0, 5.0]]),
        rewards_BN=torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
        mask_BN=torch.ones(2, 2, dtype=torch.bool),
    )
    losses_B = config.loss(batch)
    value = find_objective(config.objective.name)(losses_B, torch.tensor([0.1, 1.5]), lam=1.0).item()
    print(f"losses {[round(x, 3) for x in losses_B.tolist()]}, objective {value:.3f}")
    return losses_B.tolist(), value


if __name__ == "__main__":
    main()
