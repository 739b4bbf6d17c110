"""Base class of robust objectives, the terms of their gradients, and the registry of names.

Shape legend: B records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from dora_core.errors import did_you_mean
from dora_core.plugins import load_plugins

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Terms:
    """Per-record parts of an objective: slope g, exponent s, log base measure log b; each (B,), float64, without gradient."""

    slope_B: Tensor
    exponent_B: Tensor
    log_base_B: Tensor


@dataclass(frozen=True)
class StepSums:
    """Sums of one optimisation step over all ranks and micro-batches: the means of h and of g·ℓ over records, and
    ``log_mean_exp`` = log(Σ b e^s / n)."""

    mean_factor: float
    mean_slope_loss: float
    log_mean_exp: float


class Objective:
    """Base class of all objectives; register with :func:`register_objective`.

    A subclass implements the closed form (``__call__``) and its ``terms``; ``outer`` and ``value`` where A ≠ 1 or V ≠ λ log mean exp.
    """

    name: ClassVar[str]
    uses_factors: ClassVar[bool] = False
    """Whether the objective reads h; if not, a run skips calibration."""
    uses_lambda: ClassVar[bool] = True
    looks_ahead: ClassVar[bool] = False
    """Whether the terms depend on a number of the whole step (:meth:`look_ahead`). Alignment then computes all losses of a step before its
    gradients, in a forward pass without gradient (none is added where a rank has a single micro-batch)."""

    def __call__(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Tensor:
        """Compute V over one full batch: a scalar, differentiable in ``losses_B``; factors h ≥ 0 are constants."""
        raise NotImplementedError

    def terms(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> Terms:
        """Compute g, s and log b of every record; inputs are float64 and detached."""
        raise NotImplementedError

    def look_ahead(self, losses_B: Tensor, factors_B: Tensor, lam: float) -> float:
        """Compute that number from all records of the step; inputs are float64 and detached."""
        raise NotImplementedError

    def terms_given(self, ahead: float, losses_B: Tensor, factors_B: Tensor, lam: float) -> Terms:
        """Compute the terms of some of a step's records from its number ``ahead``."""
        raise NotImplementedError

    def outer(self, sums: StepSums) -> float:
        """Compute A, the factor of the whole gradient."""
        return 1.0

    def opposes_factors(self, losses_B: Tensor) -> bool:
        """Whether a finite λ tilts weight away from large factors on such losses; ``lambda: auto`` then stays at ∞."""
        return False

    def value(self, sums: StepSums, lam: float) -> float:
        """Compute V from the sums of a step."""
        return lam * sums.log_mean_exp


OBJECTIVES: dict[str, Objective] = {}

Registered = TypeVar("Registered", bound=type[Objective])


def register_objective(objective: Registered) -> Registered:
    """Class decorator: make an objective available under its ``name`` in every configuration."""
    known = type(OBJECTIVES.get(objective.name, objective()))
    if (known.__module__, known.__qualname__) != (objective.__module__, objective.__qualname__):
        raise ValueError(f"objective {objective.name!r} is already registered by {known.__module__}.{known.__qualname__}")
    OBJECTIVES[objective.name] = objective()
    return objective


def find_objective(name: str) -> Objective:
    """Return the objective of that name; plug-ins are loaded when the name is not built in.

    Raises:
        ValueError: unknown name; the message suggests the nearest.
        ConfigError: a plug-in cannot be imported.
    """
    if name not in OBJECTIVES:
        load_plugins()
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; {did_you_mean(name, OBJECTIVES)}")
    return OBJECTIVES[name]
