"""Chance of a wrong label of each source, estimated during training for ``lcpo``.

State of the run: the rates of a step follow from the records of all earlier steps over all ranks, and go into every checkpoint.

Shape legend: B records, S sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dora_core.losses.base import PreferenceLoss
from dora_core.losses.latent_label import LCPO

SMALLEST = 1e-3
"""Lower limit of a rate: at 0 every label counts as right for ever."""
LARGEST = 0.5
"""Upper limit: beyond it labels would be read in reverse, which no data can tell from a policy that learned them in reverse."""

NOISE_OF = "label_noise_"  # metric prefix: a source's rate


class NoiseRates:
    """η of every source.

    Args:
        loss: nothing is estimated unless it is an :class:`LCPO`.
        steps: optimisation steps of the whole run.
    """

    def __init__(self, loss: PreferenceLoss, sources: Sequence[str], steps: int):
        self._loss = loss if isinstance(loss, LCPO) else None
        self._sources = list(sources)
        initial = 0.0 if self._loss is None else self._loss.initial_noise
        self._rates_S = torch.full((len(self._sources),), initial, dtype=torch.float64)
        self._burn_in = 0 if self._loss is None else math.ceil(self._loss.burn_in * steps)

    @property
    def learns(self) -> bool:
        """True if the loss reads rates."""
        return self._loss is not None

    def at(self, step: int) -> Tensor:
        """Rates of a step, (S,), float64; 0 during the burn-in."""
        return torch.zeros_like(self._rates_S) if step < self._burn_in else self._rates_S

    def sums(self, batch: Any, valid_B: Tensor, shares_BS: Tensor) -> Tensor:
        """(2, S) sums over a micro-batch's records, for :meth:`observe`: of (1 − w)·share and of share; float64, on the CPU.

        Args:
            batch: the micro-batch, a ``PreferenceBatch``.
            shares_BS: share of each source among a record's responses.
        """
        assert self._loss is not None
        wrong_B = 1 - self._loss.label_correct(batch).double().cpu()
        weight_BS = shares_BS * valid_B.cpu()[:, None]
        return torch.stack([torch.where(valid_B.cpu(), wrong_B, 0.0) @ weight_BS, weight_BS.sum(dim=0)])

    def observe(self, step: int, sums_2S: Tensor) -> None:
        """Update the rates from the :meth:`sums` of a finished step over all micro-batches and ranks; sources without a record keep
        theirs."""
        if self._loss is None or step < self._burn_in:
            return
        wrong_S, count_S = sums_2S.cpu()
        found_S = self._loss.memory * self._rates_S + (1 - self._loss.memory) * wrong_S / count_S.clamp(min=1e-300)
        self._rates_S = torch.where(count_S > 0, found_S, self._rates_S).clamp(SMALLEST, LARGEST)

    def metrics(self) -> dict[str, float]:
        """Rates by metric name; empty if nothing is estimated."""
        if self._loss is None:
            return {}
        return {f"{NOISE_OF}{name}": rate for name, rate in zip(self._sources, self._rates_S.tolist(), strict=True)}

    def state(self) -> dict[str, Any]:
        return {"noise_rates": dict(zip(self._sources, self._rates_S.tolist(), strict=True))} if self.learns else {}

    def restore(self, state: dict[str, Any]) -> None:
        if self.learns:
            self._rates_S = torch.tensor([state["noise_rates"][name] for name in self._sources], dtype=torch.float64)
