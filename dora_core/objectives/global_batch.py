"""The exact gradient of an objective over the whole global batch, one pass, any number of ranks and micro-batches.

The log-mean-exp of a robust objective couples all records of an optimisation step. Like the online softmax of
attention, but on gradients: each micro-batch back-propagates ``Σ_i g_i b_i exp(s_i − c) ∇ℓ_i`` relative to an offset c. When a
score outgrows c by more than :data:`HEADROOM`, the gradient accumulated so far is rescaled and c moves up. Before the
last backward the ranks exchange their offsets (a few float64 numbers); after it one factor ``A / Z`` makes the gradient exact.
No second forward pass and no extra gradient traffic; the factor is folded into the clipping multiply.

Why offsets do not move at every new maximum: floating point loses no relative precision from a scale of e^±20, and a pass
over all gradients costs memory traffic. Starting from the last step's offset, most steps never rescale at all.

``scope`` can make the normaliser local to a rank or a micro-batch, as other code bases do without mentioning it; it is kept as a
baseline for measurements, and because it reproduces the released code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from dora_core.errors import ConfigError
from dora_core.objectives.base import StepSums, Terms, find_objective
from dora_core.objectives.settings import ObjectiveConfig

# Running sums of one step: Z = Σ b e^{s−c}, records, Σ h, Σ ℓ, Σ w, Σ w², Σ g·ℓ with w = |g| b e^{s−c}, then Σ w of every group.
_NORMALIZER, _RECORDS = 0, 1
# Moving the offset from c to c′ multiplies each of these sums by e^{c−c′} to its power here.
_POWERS = (1, 0, 0, 0, 1, 2, 0)

HEADROOM = 20.0
"""Largest s − c, and largest distance from a carried-over offset: e^20 is far inside the range of float32 and bfloat16."""


@dataclass(frozen=True)
class StepReport:
    """Diagnostics of one optimisation step, over the global batch (``scope`` global) or this rank's share of it.

    Attributes:
        value: the objective.
        loss: plain mean ℓ.
        records: records with a preference or a label.
        lam: λ of this step.
        weight_ess: effective sample size of the record weights as a fraction of the records, (Σw)²/(n·Σw²).
        max_weight: largest share of one record in the total weight.
        heaviest: id of that record, the smallest of several; None if the step has no weight or no ids were given.
        group_weights: share of each group (source) in the total weight; they sum to 1.
        log_normalizer: log Z + c − log n; 0 for a plain mean.
    """

    value: float
    loss: float
    records: int
    lam: float
    weight_ess: float
    max_weight: float
    heaviest: int | None
    group_weights: tuple[float, ...]
    log_normalizer: float


class GlobalBatch:
    """Accumulates one optimisation step; see the module docstring. Create one per run and call :meth:`begin` per step.

    Usage per step::

        batch.begin(micro_batches, lam)
        for each micro-batch:
            weights, rescale = batch.add(losses, factors, valid)
            if last: rescale *= batch.exchange()
            multiply accumulated gradients by rescale (if it is not 1)
            (weights * losses).sum().backward()      # synchronising gradients (mean over ranks) at the last one
        multiply gradients by batch.final_scale

    Args:
        config: the objective.
        groups: number of groups whose share of the weight is reported; 0 for none.
        keep_records: keep the (ℓ, h) of each step for :meth:`gather_records`.
        group: process group, or ``None`` for one process.
        sync_every_micro_batch: gradients are reduced at every micro-batch (FSDP), so ranks must share one offset throughout.

    Raises:
        ConfigError: ``scope: rank`` with ``sync_every_micro_batch``, which cannot be expressed.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        *,
        groups: int = 0,
        keep_records: bool = False,
        group: dist.ProcessGroup | None = None,
        sync_every_micro_batch: bool = False,
    ):
        if sync_every_micro_batch and config.scope == "rank":
            raise ConfigError(
                "objective.scope 'rank' does not work with execution.strategy 'fsdp'",
                hint="use scope 'global' (exact) or 'micro', or strategy 'ddp'",
            )
        self.objective, self.scope = find_objective(config.name), config.scope
        self._keep_records, self._group, self._sync_every = keep_records, group, sync_every_micro_batch
        self._powers = torch.tensor([*_POWERS, *[1] * groups], dtype=torch.float64)
        self.world_size = dist.get_world_size(group) if group is not None else 1
        self.carried_offset: float | None = None
        self.begin(1, 1.0)

    def begin(self, micro_batches: int, lam: float) -> None:
        """Start an optimisation step of ``micro_batches`` on this rank (at least 1; an empty one has ``valid`` all False).

        An objective that ``looks_ahead`` also needs :meth:`look_ahead` before the first :meth:`add`.
        """
        self._micro_batches, self.lam = micro_batches, lam
        self._ahead: float | None = None
        self._offset = self.carried_offset  # shared by all ranks: it comes out of an exchange
        self._started = False
        self._sums = torch.zeros_like(self._powers)
        self._max_weight, self._heaviest = 0.0, -1
        self._micro_value = 0.0
        self._seen: list[Tensor] = []
        self.final_scale = 1.0

    def look_ahead(self, losses_B: Tensor, factors_B: Tensor) -> None:
        """Give the (ℓ, h) of all records of the step over all ranks, float64 and on the CPU, to an objective that ``looks_ahead``."""
        self._ahead = self.objective.look_ahead(losses_B, factors_B, self.lam) if len(losses_B) else 0.0

    def add(
        self, losses_B: Tensor, factors_B: Tensor, valid_B: Tensor, ids_B: Tensor | None = None, groups_BG: Tensor | None = None
    ) -> tuple[Tensor, float]:
        """Weights for this micro-batch's backward, and the factor for the gradient accumulated before it.

        Args:
            losses_B: unreduced ℓ, shape (B,); only values are read.
            factors_B: h ≥ 0, shape (B,).
            valid_B: bool; records without a preference or label (and padding) have no weight.
            ids_B: integers ≥ 0 that identify the records in the report; on the CPU.
            groups_BG: how each record belongs to the groups; rows sum to 1; on the CPU.

        Returns:
            (weights of shape (B,) like the losses, rescale factor ≤ 1)
        """
        # A few numbers a record: copied to the host together, so an accelerator synchronises once per micro-batch and not for every sum.
        loss_B, valid_B = torch.stack([losses_B.detach().double(), valid_B.to(losses_B.device, torch.float64)]).cpu()
        valid_B = valid_B.bool()
        loss_B = torch.where(valid_B, loss_B, 0.0)
        factor_B = torch.where(valid_B, factors_B.double().cpu(), 1.0)
        t = self._terms(loss_B, factor_B)
        scores_B = (t.exponent_B + t.log_base_B).masked_fill(~valid_B, -math.inf)
        if self._keep_records:
            self._seen.append(torch.stack([loss_B, factor_B])[:, valid_B])
        if self.scope == "micro":
            if not bool(valid_B.any()):
                return torch.zeros_like(losses_B), 1.0
            shares_B = (scores_B - scores_B.max()).exp()
            sums = self._count(t, shares_B, loss_B, factor_B, valid_B, ids_B, groups_BG)
            return self._micro_weights(t, shares_B, sums, float(scores_B.max())).to(losses_B), 1.0
        rescale = self._move_offset(scores_B)
        shares_B = (scores_B - (self._offset or 0.0)).exp()
        self._count(t, shares_B, loss_B, factor_B, valid_B, ids_B, groups_BG)
        return (t.slope_B * shares_B).to(losses_B), rescale

    def exchange(self) -> float:
        """Call once, between the last ``add`` and the last backward: agree on offsets and set :attr:`final_scale`.

        Returns:
            Factor for everything accumulated on this rank, the last micro-batch included (multiply its weights too).
        """
        if self.scope != "global":
            self._total, self._total_max, self._total_heaviest = self._sums, self._max_weight, self._heaviest
            return 1.0 if self.scope == "micro" else self._scale(self._sums, self._offset or 0.0)
        offset = -math.inf if self._offset is None else self._offset
        mine = torch.tensor([offset, self._max_weight, self._heaviest, *self._sums.tolist()], dtype=torch.float64)
        gathered = self._all_gather(mine)  # one row per rank
        offset_R, max_weight_R, heaviest_R = gathered[:, :3].unbind(dim=1)
        sums_RS = gathered[:, 3:]
        shared = float(offset_R.max())
        if shared == -math.inf:
            shared = 0.0
        corrections_R = (offset_R - shared).exp()
        self._total = (sums_RS * corrections_R[:, None] ** self._powers).sum(dim=0)
        max_weight_R = max_weight_R * corrections_R
        self._total_max = float(max_weight_R.max())
        ties = heaviest_R[max_weight_R == self._total_max]
        self._total_heaviest = int(ties.min()) if len(ties) else -1  # none where losses are not finite, which the training loop refuses
        correction = math.exp(offset - shared)
        self._offset = self.carried_offset = shared
        self._counts = sums_RS[:, _RECORDS].long().tolist()
        self.final_scale = self._scale(self._total, shared) * self.world_size  # DDP and FSDP average over ranks
        return correction

    def gather_records(self) -> tuple[Tensor, Tensor]:
        """Return (ℓ, h) of every record of the step, on every rank, float64; valid after :meth:`exchange` with scope global and
        ``keep_records``."""
        mine_2B = torch.cat(self._seen, dim=1)
        padded_2B = torch.nn.functional.pad(mine_2B, (0, max(self._counts) - mine_2B.shape[1]))
        gathered = self._all_gather(padded_2B)
        losses_B, factors_B = torch.cat([rank[:, :n] for rank, n in zip(gathered, self._counts, strict=True)], dim=1)
        return losses_B, factors_B

    def report(self) -> StepReport:
        """Return the diagnostics of the step; valid after :meth:`exchange`."""
        _, records, _, loss_sum, weight_sum, weight_sum2, _, *groups = self._total.tolist()
        n, sums = max(records, 1.0), self._summary(self._total, self._offset or 0.0)
        return StepReport(
            value=self._micro_value if self.scope == "micro" else self.objective.value(sums, self.lam),
            loss=loss_sum / n,
            records=int(records),
            lam=self.lam,
            weight_ess=weight_sum**2 / (n * weight_sum2) if weight_sum2 > 0 else 0.0,
            max_weight=self._total_max / weight_sum if weight_sum > 0 else 0.0,
            heaviest=self._total_heaviest if self._total_heaviest >= 0 else None,
            group_weights=tuple(g / weight_sum if weight_sum > 0 else 0.0 for g in groups),
            log_normalizer=sums.log_mean_exp,
        )

    # ----------------------------------------------------------------------------------------------------- internals

    def _terms(self, losses_B: Tensor, factors_B: Tensor) -> Terms:
        if not self.objective.looks_ahead:
            return self.objective.terms(losses_B, factors_B, self.lam)
        assert self._ahead is not None, "look_ahead comes before the first add of a step"
        return self.objective.terms_given(self._ahead, losses_B, factors_B, self.lam)

    def _move_offset(self, scores_B: Tensor) -> float:
        """Raise (or first set) the offset if these scores need it; return the factor for everything accumulated before."""
        top = float(scores_B.max()) if scores_B.numel() else -math.inf
        if self._sync_every and self._group is not None:
            top = float(self._all_gather(torch.tensor([top], dtype=torch.float64)).max())
        if top == -math.inf:
            return 1.0
        first, self._started = not self._started, True
        if self._offset is None or (first and abs(top - self._offset) > HEADROOM):
            self._offset = top
        if top <= self._offset + HEADROOM:
            return 1.0
        rescale = math.exp(self._offset - top)
        self._sums = self._sums * rescale**self._powers
        self._max_weight *= rescale
        self._offset = top
        return rescale

    def _count(
        self,
        t: Terms,
        shares_B: Tensor,
        losses_B: Tensor,
        factors_B: Tensor,
        valid_B: Tensor,
        ids_B: Tensor | None,
        groups_BG: Tensor | None,
    ) -> Tensor:
        """Add a micro-batch to the running sums; return the micro-batch's own sums."""
        weights_B = t.slope_B.abs() * shares_B
        parts = [shares_B, valid_B, factors_B * valid_B, losses_B, weights_B, weights_B**2, t.slope_B * losses_B * valid_B]
        if groups_BG is not None:
            parts += list((groups_BG * weights_B[:, None]).unbind(dim=1))
        sums = torch.stack([p.double().sum() for p in parts])
        self._sums = self._sums + sums
        if weights_B.numel() and (top := float(weights_B.max())) > 0 and top >= self._max_weight:
            # Of equal weights (``kldpo`` limits them) the smallest id, so that the report does not depend on the layout.
            first = -1 if ids_B is None else int(ids_B[weights_B == top].min())
            self._heaviest = first if top > self._max_weight else min(first, self._heaviest)
            self._max_weight = top
        return sums

    def _micro_weights(self, t: Terms, shares_B: Tensor, sums: Tensor, top: float) -> Tensor:
        """Scope ``micro``: normalise over this micro-batch alone; the step is the plain mean over micro-batches."""
        summary = self._summary(sums, top)
        self._micro_value += self.objective.value(summary, self.lam) / self._micro_batches
        return self.objective.outer(summary) * t.slope_B * shares_B / (shares_B.sum() * self._micro_batches)

    def _summary(self, sums: Tensor, offset: float) -> StepSums:
        z, records, factor_sum, _, _, _, slope_loss, *_ = sums.tolist()
        n = max(records, 1.0)
        return StepSums(factor_sum / n, slope_loss / n, math.log(max(z, 1e-300) / n) + offset if records else 0.0)

    def _scale(self, sums: Tensor, offset: float) -> float:
        """A / Z: the factor that turns Σ g b e^{s−c} ∇ℓ into the objective's gradient."""
        z = sums[_NORMALIZER].item()
        return self.objective.outer(self._summary(sums, offset)) / z if z > 0.0 else 0.0

    def _all_gather(self, mine: Tensor) -> Tensor:
        """Gather a float64 tensor from all ranks: (ranks, *shape). Called once per step."""
        if self._group is None:
            return mine[None]
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(self._group) == "nccl" else torch.device("cpu")
        gathered = [torch.empty_like(mine, device=device) for _ in range(self.world_size)]
        dist.all_gather(gathered, mine.to(device), group=self._group)
        return torch.stack(gathered).cpu()
