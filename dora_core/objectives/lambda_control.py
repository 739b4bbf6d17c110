"""Choice of λ for each optimisation step (``objective.lambda``).

λ acts relative to the spread of h·ℓ, which differs between losses and shrinks during training. ``auto`` therefore fixes the
*consequence* instead: the effective sample size (ESS) of a step's record weights, as a fraction of
what it is at λ = ∞. After each step the smallest λ that keeps this fraction on the step's own losses is found; the next step
uses it if it is larger than the λ so far, else log λ moves a tenth of the way, and λ falls by a fifth at most. So λ lags by one step
(the gradient is needed in one pass), rises at once when the losses spread, falls slowly, and is ∞ until losses differ at all.

At the start the losses differ by rounding alone and spread manifold with every step, so the λ found on one step would put most of
the next one's weight on a few records. The first λ is therefore not the one found, but a tenth of the way to it (in log λ) from
:data:`FIRST` times the size of the losses, at which any step's weights are nearly equal: λ comes down over tens of steps, while the
spread settles.

``dora`` on a loss below 0 (``lire``) gives a large h a *small* exponent h·ℓ/λ: the tilt undoes the factors, and the measured policies
were worse than with plain ``erm`` (README, results). There ``auto`` stays at ∞, which is ``reweight``; a given number is used as it is.

Shape legend: B records of one optimisation step.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from dora_core.objectives.base import Objective, find_objective
from dora_core.objectives.settings import LambdaSchedule, ObjectiveConfig

UNBOUNDED = 1e6
"""λ "= ∞": far above any h·ℓ, and small enough that λ·log mean exp keeps ten digits in float64."""
SMALLEST = 1e-4
MEMORY = 0.9  # share of the old log λ in the new one while it falls: about ten steps
LARGEST_FALL = math.log(1.25)  # of log λ, per step
PRECISION = 1e-3  # of log λ
FIRST = 10.0
"""λ that ``auto`` starts to fall from, in mean |h·ℓ|: losses that spread as far as they are large keep an ESS of .99 there."""


class LambdaControl:
    """λ of each step: constant, scheduled, or chosen by :func:`lambda_for_ess` from the losses seen so far.

    Args:
        steps: optimisation steps of the whole run.
    """

    def __init__(self, config: ObjectiveConfig, steps: int):
        self._config, self._steps = config, steps
        self._objective = find_objective(config.name)
        self._log_lam: float | None = None

    @property
    def learns(self) -> bool:
        """True if λ is learned: :meth:`observe` then needs the records of each step."""
        return self._config.lam == "auto" and self._objective.uses_lambda

    def at(self, step: int) -> float:
        """Return λ > 0 for step 0 … steps − 1."""
        match self._config.lam:
            case LambdaSchedule(start=start, end=end, shape=shape):
                done = step / max(1, self._steps - 1)
                return start + done * (end - start) if shape == "linear" else start * (end / start) ** done
            case "auto":
                return UNBOUNDED if self._log_lam is None else math.exp(self._log_lam)
            case number:
                return number

    def observe(self, losses_B: Tensor, factors_B: Tensor) -> None:
        """Update λ from the (ℓ, h) of a finished step, over all ranks; see ``GlobalBatch.gather_records``."""
        if self._objective.opposes_factors(losses_B):
            return
        found = lambda_for_ess(self._objective, losses_B, factors_B, self._config.ess_target)
        if found is not None:
            log_lam = math.log(found)
            before = self._first(losses_B, factors_B) if self._log_lam is None else self._log_lam
            self._log_lam = max(log_lam, MEMORY * before + (1 - MEMORY) * log_lam, before - LARGEST_FALL)

    def _first(self, losses_B: Tensor, factors_B: Tensor) -> float:
        """log λ before the first that is found."""
        scores_B = factors_B * losses_B if self._objective.uses_factors else losses_B
        size = float(scores_B.abs().mean())
        return math.log(min(max(FIRST * size, SMALLEST), UNBOUNDED))

    def state(self) -> dict[str, Any]:
        return {"log_lam": self._log_lam}

    def restore(self, state: dict[str, Any]) -> None:
        self._log_lam = state["log_lam"]


def lambda_for_ess(objective: Objective, losses_B: Tensor, factors_B: Tensor, target: float) -> float | None:
    """Find the λ at which, coming from ∞, the ESS of the weights first falls to ``target`` × its value at λ = ∞.

    Args:
        losses_B, factors_B: float64, shape (B,).
        target: in (0, 1).

    Returns:
        λ in [1e-4, 1e6]; None if no λ in that range concentrates the weights that much (equal scores).
    """
    floor = target * weight_ess(objective, losses_B, factors_B, UNBOUNDED)

    def keeps(log_lam: float) -> bool:
        return weight_ess(objective, losses_B, factors_B, math.exp(log_lam)) >= floor

    # Down in factors of two until the ESS breaks, then bisection inside that factor: robust where the ESS is not monotone in λ.
    high = math.log(UNBOUNDED)
    while keeps(high - math.log(2.0)):
        high -= math.log(2.0)
        if high <= math.log(SMALLEST):
            return None
    low = high - math.log(2.0)
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return math.exp(high)


def weight_ess(objective: Objective, losses_B: Tensor, factors_B: Tensor, lam: float) -> float:
    """(Σw)²/(B·Σw²) of the record weights w = |g|·b·e^s, in (0, 1]."""
    t = objective.terms(losses_B, factors_B, lam)
    scores_B = t.exponent_B + t.log_base_B
    weights_B = t.slope_B.abs() * (scores_B - scores_B.max()).exp()
    return float(weights_B.sum() ** 2 / (len(weights_B) * weights_B.square().sum()))
