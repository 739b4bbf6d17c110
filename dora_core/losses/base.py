"""What a preference loss is, the batch it sees, and the registry that names it.

Shape legend for this package: B records, N responses per record (padded to the longest list).

A loss never reduces over records: the robust objective does, over the whole optimisation step. Each loss states its
*offset convention* in ``offset``, because ``dora`` multiplies ℓ by h before exponentiating and is therefore not invariant
to a shift of ℓ (DESIGN section 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from dora_core.config import LossParams
from dora_core.errors import did_you_mean


@dataclass(frozen=True)
class PreferenceBatch:
    """Log-probabilities and rewards of B records; ragged lists are padded with ``mask_BN = False``.

    Attributes:
        policy_logps_BN: Σ_t log π(y_t | x, y_<t) over response tokens, nats; differentiable.
        reference_logps_BN: the same under the frozen reference.
        lengths_BN: response tokens |y| ≥ 1 (anything where masked).
        rewards_BN: NaN = not measured. Larger is better; ties are no preference.
        mask_BN: True where there is a response.
    """

    policy_logps_BN: Tensor
    reference_logps_BN: Tensor
    lengths_BN: Tensor
    rewards_BN: Tensor
    mask_BN: Tensor

    @cached_property
    def measured_BN(self) -> Tensor:
        """True where a response has a reward; the rest never takes part in a loss."""
        return self.mask_BN & ~self.rewards_BN.isnan()

    @cached_property
    def log_ratios_BN(self) -> Tensor:
        """lr = log π − log π_ref, 0 where masked (a masked −inf or NaN must not reach a gradient)."""
        return torch.where(self.mask_BN, self.policy_logps_BN - self.reference_logps_BN, 0.0)

    @cached_property
    def beats_BNN(self) -> Tensor:
        """``beats[b, i, j]``: response i has a strictly larger measured reward than response j."""
        both = self.measured_BN[:, :, None] & self.measured_BN[:, None, :]
        return both & (self.rewards_BN[:, :, None] > self.rewards_BN[:, None, :])

    @cached_property
    def has_preference_B(self) -> Tensor:
        """Records with at least one strict preference; the others carry no signal and are left out of the objective."""
        return self.beats_BNN.any(dim=(1, 2))

    @cached_property
    def best_worst(self) -> tuple[Tensor, Tensor]:
        """Indices, each (B,), of the largest and smallest measured reward; ties go to the first."""
        best = self.rewards_BN.masked_fill(~self.measured_BN, -torch.inf).argmax(dim=1)
        worst = self.rewards_BN.masked_fill(~self.measured_BN, torch.inf).argmin(dim=1)
        return best, worst


class PreferenceLoss(LossParams):
    """Base of all losses: parameters are typed fields, the loss is ``__call__``.

    Register with :func:`register_loss`; ``name`` must be a field with a default, the name used in configurations.
    """

    offset: ClassVar[str]
    """Where ℓ has its zero and its bounds, in words."""

    @property
    def reads_pairs_only(self) -> bool:
        """True if (best, worst) is all this loss looks at, so that nothing else of a list need be computed."""
        return False

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        """Unreduced ℓ, shape (B,); finite for every record, meaningful where ``batch.has_preference_B``."""
        raise NotImplementedError


LOSSES: dict[str, type[PreferenceLoss]] = {}

L = TypeVar("L", bound=type[PreferenceLoss])


def register_loss(loss: L) -> L:
    """Class decorator: make a loss available under its ``name`` in every configuration."""
    name = loss.model_fields["name"].default
    if not isinstance(name, str):
        raise TypeError(f"{loss.__name__} needs a field `name: Literal['…'] = '…'`")
    if LOSSES.get(name, loss).__qualname__ != loss.__qualname__:
        raise ValueError(f"loss {name!r} is already registered by {LOSSES[name].__qualname__}")
    LOSSES[name] = loss
    return loss


def parse_loss(value: Any) -> PreferenceLoss:
    """A registered loss from ``"dpo"``, ``{"name": "dpo", "beta": 0.1}`` or an instance.

    Raises:
        ValueError: unknown name (with the nearest one). Bad parameters raise pydantic's ``ValidationError``.
    """
    if isinstance(value, PreferenceLoss):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError(f"a loss is a name or a mapping with `name`, got {value!r}; allowed: {', '.join(sorted(LOSSES))}")
    if value["name"] not in LOSSES:
        raise ValueError(f"unknown loss {value['name']!r}; {did_you_mean(value['name'], LOSSES)}")
    return LOSSES[value["name"]].model_validate(value)
