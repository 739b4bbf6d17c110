"""What a loss or an objective needs to know of the whole optimisation step before its gradients.

``aot`` matches records by rank, ``kldpo`` weighs them against the mean loss. Both read numbers of every record of the step, over all ranks
and micro-batches, and no gradient of another record. Alignment computes these in a forward pass without gradient, which is the gradient's
own where a rank has one micro-batch.

Shape legend: B records of a micro-batch, n records of the step that train.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dora_core.losses import PreferenceBatch, PreferenceLoss
    from dora_core.objectives.base import Objective
    from dora_core.training.distributed import Worker


@dataclass(frozen=True)
class Ahead:
    """Numbers of a step.

    Attributes:
        partners: per micro-batch of this rank, see ``PreferenceBatch.partners_B2``; None for a loss that matches nothing.
        losses_n, factors_n: ℓ and h of all records, float64, on the CPU; None for an objective that does not look ahead.
    """

    partners: list[Tensor | None]
    losses_n: Tensor | None
    factors_n: Tensor | None


class LookAhead:
    """Collects the numbers of a step over all ranks."""

    def __init__(self, loss: PreferenceLoss, objective: Objective, worker: Worker):
        self._loss, self._objective, self._worker = loss, objective, worker

    @property
    def needed(self) -> bool:
        return self._loss.matches_records or self._objective.looks_ahead

    @torch.no_grad()
    def of(self, batches: Sequence[PreferenceBatch], valid: Sequence[Tensor], factors: Sequence[Tensor]) -> Ahead:
        """Numbers of the step of which this rank has ``batches``; a collective: every rank calls it once per step.

        Args:
            valid: per micro-batch, bool (B,): records that train.
            factors: per micro-batch, (B,): h.
        """
        partners: list[Tensor | None] = [None] * len(batches)
        if self._loss.matches_records:
            partners = list(self._match(batches, valid))
            batches = [dataclasses.replace(b, partners_B2=p) for b, p in zip(batches, partners, strict=True)]
        if not self._objective.looks_ahead:
            return Ahead(partners, None, None)
        rows = [
            torch.stack([self._loss(b).double().cpu(), h_B.double().cpu()], dim=1)[v_B.cpu()]
            for b, h_B, v_B in zip(batches, factors, valid, strict=True)
        ]
        everyone_n2 = torch.cat(self._everyone(torch.cat(rows)))
        return Ahead(partners, *everyone_n2.unbind(dim=1))

    def _match(self, batches: Sequence[PreferenceBatch], valid: Sequence[Tensor]) -> list[Tensor]:
        own = [self._loss.quantities(batch) for batch in batches]
        mine_n2 = torch.cat([q_B2[v_B] for q_B2, v_B in zip(own, valid, strict=True)]).double().cpu()
        everyone = self._everyone(mine_n2)
        before = sum(len(rows) for rows in everyone[: self._worker.rank])
        found_n2 = self._loss.match(torch.cat(everyone))[before : before + len(mine_n2)]
        parts = torch.split(found_n2, [int(v_B.sum()) for v_B in valid])
        return [
            torch.zeros_like(q_B2).masked_scatter(v_B[:, None].to(q_B2.device), part.to(q_B2))
            for q_B2, v_B, part in zip(own, valid, parts, strict=True)
        ]

    def _everyone(self, mine_n2: Tensor) -> list[Tensor]:
        """The rows of every rank, by rank."""
        return [torch.tensor(rows, dtype=torch.float64).reshape(-1, 2) for rows in self._worker.gather(mine_n2.tolist())]
