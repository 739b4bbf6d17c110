"""Choose λ by its effect: the effective sample size (ESS) of the record weights.

λ acts relative to the spread of h·ℓ. ``lambda: auto`` finds the smallest λ that keeps a share of the ESS, so a loss ten times as large
gets a λ ten times as large and the same weights.
"""

from __future__ import annotations

import torch

from dora_core.objectives import ObjectiveConfig, find_objective
from dora_core.objectives.lambda_control import UNBOUNDED, LambdaControl, lambda_for_ess, weight_ess


def main() -> tuple[float, float, float]:
    """Return λ for losses of two scales, and the share of the ESS that is kept."""
    generator = torch.Generator().manual_seed(0)
    losses_B = torch.rand(256, generator=generator, dtype=torch.float64)
    factors_B = torch.rand(256, generator=generator, dtype=torch.float64) * 2
    dora = find_objective("dora")
    small, large = (lambda_for_ess(dora, scale * losses_B, factors_B, target=0.9) for scale in (1.0, 10.0))
    assert small is not None and large is not None
    kept = weight_ess(dora, losses_B, factors_B, small) / weight_ess(dora, losses_B, factors_B, UNBOUNDED)

    control = LambdaControl(ObjectiveConfig(name="dora", lam="auto", ess_target=0.9), steps=10)  # the same rule during training
    control.observe(losses_B, factors_B)
    print(f"λ {small:.3f} and {large:.3f}; share of the effective sample size kept {kept:.3f}; λ of the next step {control.at(1):.3f}")
    return small, large, kept


if __name__ == "__main__":
    main()
