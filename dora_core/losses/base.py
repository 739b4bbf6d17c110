"""Base class of preference losses, their input batch, and the registry of names.

Shape legend for this package: B records, N responses per record (padded to the longest list).

A loss never reduces over records and never looks at another record: the robust objective combines them, over the whole
optimisation step. Each loss states its *offset convention* in ``offset``, because ``dora`` multiplies ℓ by h before
exponentiating and is therefore not invariant to a shift of ℓ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from dora_core.errors import did_you_mean
from dora_core.lazy_torch import torch
from dora_core.plugins import load_plugins
from dora_core.strict_model import StrictModel

if TYPE_CHECKING:
    from torch import Tensor


class LossParams(StrictModel):
    """Base class of the parameters of a loss; the registered losses are in ``dora_core/losses``."""

    name: str


@dataclass(frozen=True)
class PreferenceBatch:
    """Log-probabilities and rewards of B records; ragged lists are padded with ``mask_BN = False``.

    Attributes:
        policy_logps_BN: Σ_t log π(y_t | x, y_<t) over response tokens, nats; differentiable.
        reference_logps_BN: the same under the frozen reference.
        lengths_BN: response tokens |y| ≥ 1.
        rewards_BN: NaN = not measured. Larger is better; ties are no preference.
        mask_BN: True where there is a response; the other tensors may hold anything where it is False.
        unpaired_B: True for a record of one labelled response, reward 1 desirable or 0 undesirable; no record where it is left out.
            Never derived from the rewards: a list with a single measured response is not an unpaired record.
        label_probability_B: in [0, 1], the probability q that the record's label is right: that the responses are preferred in the order
            of their rewards, or that an unpaired response's label holds. None: 1 for every record.
        noise_rates_B: in [0, ½], the estimated chance of a wrong label of the record's sources, for losses that estimate it; None: not
            estimated yet.
        partners_B2: quantiles that the record's own two quantities are matched with, for a loss that ``matches_records``; None: the batch
            is the whole optimisation step, and is matched in itself.
        log_collisions_BN: Σ_t log Σ_v π(v | x, y_<t)² over response tokens, ≤ 0, without gradient; None unless the loss
            ``reads_collisions``.
    """

    policy_logps_BN: Tensor
    reference_logps_BN: Tensor
    lengths_BN: Tensor
    rewards_BN: Tensor
    mask_BN: Tensor
    unpaired_B: Tensor = None  # type: ignore[assignment]  # set below
    label_probability_B: Tensor | None = None
    noise_rates_B: Tensor | None = None
    partners_B2: Tensor | None = None
    log_collisions_BN: Tensor | None = None

    def __post_init__(self) -> None:
        if self.unpaired_B is None:
            object.__setattr__(self, "unpaired_B", torch.zeros_like(self.mask_BN[:, 0]))

    @cached_property
    def measured_BN(self) -> Tensor:
        """True where a response has a reward; other responses never enter a loss."""
        return self.mask_BN & ~self.rewards_BN.isnan()

    @cached_property
    def log_ratios_BN(self) -> Tensor:
        """lr = log π − log π_ref, 0 where masked (a masked −inf or NaN must not reach a gradient)."""
        return torch.where(self.mask_BN, self.policy_logps_BN - self.reference_logps_BN, 0.0)

    @cached_property
    def token_counts_BN(self) -> Tensor:
        """|y|, 1 where masked, so that it is safe to divide by."""
        return torch.where(self.mask_BN, self.lengths_BN, 1.0)

    @cached_property
    def average_logps_BN(self) -> Tensor:
        """p = log π / |y|, nats per token, 0 where masked."""
        return torch.where(self.mask_BN, self.policy_logps_BN, 0.0) / self.token_counts_BN

    @cached_property
    def beats_BNN(self) -> Tensor:
        """``beats[b, i, j]``: response i has a strictly larger measured reward than response j."""
        both = self.measured_BN[:, :, None] & self.measured_BN[:, None, :]
        return both & (self.rewards_BN[:, :, None] > self.rewards_BN[:, None, :])

    @cached_property
    def has_preference_B(self) -> Tensor:
        """True for records with at least one strict preference."""
        return self.beats_BNN.any(dim=(1, 2))

    @cached_property
    def trains_B(self) -> Tensor:
        """True for records with a strict preference or a label; the others carry no signal and are left out of the objective."""
        return self.has_preference_B | self.unpaired_B

    @cached_property
    def desirable_B(self) -> Tensor:
        """True for unpaired records with the label desirable; meaningless for other records."""
        return self.of_best(self.rewards_BN) > 0

    @cached_property
    def margins_B(self) -> Tensor:
        """Log-ratio on the right side: lr_best − lr_worst of a list, lr of a desirable response, −lr of an undesirable one."""
        best_B = self.of_best(self.log_ratios_BN)
        single_B = torch.where(self.desirable_B, best_B, -best_B)
        return torch.where(self.unpaired_B, single_B, best_B - self.of_worst(self.log_ratios_BN))

    @cached_property
    def best_worst(self) -> tuple[Tensor, Tensor]:
        """Indices, each (B,), of the largest and smallest measured reward; ties go to the first."""
        best = self.rewards_BN.masked_fill(~self.measured_BN, -torch.inf).argmax(dim=1)
        worst = self.rewards_BN.masked_fill(~self.measured_BN, torch.inf).argmin(dim=1)
        return best, worst

    def of_best(self, values_BN: Tensor) -> Tensor:
        """``values_BN`` of each record's best response, (B,)."""
        return values_BN.gather(1, self.best_worst[0][:, None]).squeeze(1)

    def of_worst(self, values_BN: Tensor) -> Tensor:
        """``values_BN`` of each record's worst response, (B,)."""
        return values_BN.gather(1, self.best_worst[1][:, None]).squeeze(1)

    def of_preferred(self, values_BN: Tensor) -> Tensor:
        """Expected ``values_BN`` of the response that is truly preferred, (B,): the best one's with probability q, else the worst one's."""
        best_B = self.of_best(values_BN)
        return best_B if self.label_probability_B is None else self.mixed(best_B, self.of_worst(values_BN))

    def mixed(self, right: Tensor, wrong: Tensor) -> Tensor:
        """q·right + (1 − q)·wrong of values (B, …): their expectation over whether each record's label is right."""
        assert self.label_probability_B is not None
        q = self.label_probability_B.reshape(-1, *[1] * (right.dim() - 1))
        return q * right + (1 - q) * wrong


class PreferenceLoss(LossParams):
    """Base of all losses: parameters are typed fields, the loss is ``__call__``.

    Register with :func:`register_loss`; ``name`` must be a field with a default, the name used in configurations.
    """

    offset: ClassVar[str]
    """Zero and bounds of ℓ, in words."""

    reads_unpaired: ClassVar[bool] = False
    """Whether ℓ is defined for a record of one labelled response (``batch.unpaired_B``). Other losses never meet such a record: alignment
    refuses them beforehand."""

    reads_label_probability: ClassVar[bool] = False
    """Whether ℓ uses ``batch.label_probability_B``. Alignment refuses records with a probability for the other losses, as they would
    train on an uncertain label as on a certain one."""

    needs_label_probability: ClassVar[bool] = False
    """Whether the loss is another loss's under a new name where no record has a label probability; alignment then refuses it."""

    estimates_noise: ClassVar[bool] = False
    """Whether the loss reads ``batch.noise_rates_B``, which alignment then estimates (``noise_rates.py``)."""

    reads_collisions: ClassVar[bool] = False
    """Whether the loss reads ``batch.log_collisions_BN``, which costs one more pass over the logits."""

    matches_records: ClassVar[bool] = False
    """Whether ℓ compares a record with others of the same optimisation step (:class:`dora_core.losses.optimal_transport.AOT`); alignment
    then looks at the whole step before it computes gradients."""

    def quantities(self, batch: PreferenceBatch) -> Tensor:
        """Two numbers of every record, (B, 2), that a loss which ``matches_records`` compares over the step."""
        raise NotImplementedError

    def match(self, quantities_n2: Tensor) -> Tensor:
        """``batch.partners_B2`` of all n records of a step from their :meth:`quantities`."""
        raise NotImplementedError

    @property
    def nested(self) -> list[PreferenceLoss]:
        """Losses among the parameters."""
        return []

    @property
    def reads_pairs_only(self) -> bool:
        """True if the loss reads only the best and the worst response; the middle of a list then need not be computed."""
        return False

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        """Unreduced ℓ, shape (B,); finite for every record, meaningful where ``batch.has_preference_B``, and where
        ``batch.unpaired_B`` if it ``reads_unpaired``."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle as name and parameters: the receiving process cannot import the class of a user's plug-in file."""
        return parse_loss, (self.model_dump(),)


LOSSES: dict[str, type[PreferenceLoss]] = {}
"""Losses registered in this process so far; :func:`registered_losses` also loads the plug-ins."""

Registered = TypeVar("Registered", bound=PreferenceLoss)


def register_loss(loss: type[Registered]) -> type[Registered]:
    """Class decorator: make a loss available under its ``name`` in every configuration.

    Raises:
        TypeError: no ``name`` with a default, or no ``offset``.
        ValueError: another class has the name. (Registering the same class again is a reload, as in a notebook.)
    """
    name = loss.model_fields["name"].default
    if not isinstance(name, str):
        raise TypeError(f"{loss.__name__} needs a field `name: Literal['…'] = '…'`")
    if not hasattr(loss, "offset"):
        raise TypeError(f"{loss.__name__} needs `offset: ClassVar[str] = '…'`: the zero and the bounds of ℓ, in words")
    known: type[PreferenceLoss] = LOSSES.get(name, loss)
    if (known.__module__, known.__qualname__) != (loss.__module__, loss.__qualname__):
        raise ValueError(f"loss {name!r} is already registered by {known.__module__}.{known.__qualname__}; choose another name")
    LOSSES[name] = loss
    return loss


def registered_losses() -> dict[str, type[PreferenceLoss]]:
    """Return all losses by name, the user's plug-ins included.

    Raises:
        ConfigError: a plug-in cannot be loaded.
    """
    load_plugins()
    return dict(sorted(LOSSES.items()))


def parse_loss(value: Any) -> PreferenceLoss:
    """Build a registered loss from ``"dpo"``, ``{"name": "dpo", "beta": 0.1}`` or an instance.

    Raises:
        ValueError: unknown name (the message suggests the nearest). Bad parameters raise pydantic's ``ValidationError``.
        ConfigError: the name is not built in and a plug-in cannot be loaded.
    """
    if isinstance(value, PreferenceLoss):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError(f"a loss is a name or a mapping with `name`, got {value!r}; allowed: {', '.join(registered_losses())}")
    name = value["name"]
    if name not in LOSSES and name not in registered_losses():
        raise ValueError(f"unknown loss {name!r}; {did_you_mean(name, LOSSES)}")
    return LOSSES[name].model_validate(value, strict=True)
