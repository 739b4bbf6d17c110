"""The exact gradient of an objective over the whole global batch, one pass, any number of ranks and micro-batches.

The log-mean-exp of a robust objective couples all records of an optimisation step. Like the online softmax of
attention, but on gradients: each micro-batch back-propagates ``Σ_i g_i b_i exp(s_i − c) ∇ℓ_i`` relative to an offset c. When a
score outgrows c by more than :data:`HEADROOM`, the gradient accumulated so far is rescaled and c moves up. Before the
last backward the ranks exchange their offsets (a few float64 numbers); after it one factor ``A / Z`` makes the gradient exact.
No second forward pass and no extra gradient traffic; the factor is folded into the clipping multiply.

Why offsets do not move at every new maximum: floating point loses no relative precision from a scale of e^±20, and a pass
over all gradients costs memory traffic. Starting from the last step's offset, most steps never rescale at all.

``scope`` makes the normaliser local to a rank or a micro-batch, which is what other code bases do without saying so; it is
here to be measured against, and because it reproduces the released code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from dora_core.config import ObjectiveConfig
from dora_core.errors import ConfigError
from dora_core.objectives import Terms, terms, value

# One step's running sums, in this order: Z = Σ b e^{s−c}, records, Σ h, Σ ℓ, Σ w, Σ w², Σ g·ℓ with w = |g| b e^{s−c}.
# The powers say how each changes when everything is expressed relative to another offset.
_POWERS = torch.tensor([1, 0, 0, 0, 1, 2, 0], dtype=torch.float64)

HEADROOM = 20.0
"""Largest s − c, and largest distance from a carried-over offset: e^20 is far inside the range of float32 and bfloat16."""


@dataclass(frozen=True)
class StepReport:
    """What one optimisation step did, over the global batch (``scope`` global) or this rank's share of it.

    Attributes:
        value: the objective.
        loss: plain mean ℓ.
        records: records with a preference.
        weight_ess: effective sample size of the record weights as a fraction of the records, (Σw)²/(n·Σw²).
        max_weight: largest share of one record in the total weight.
        log_normalizer: log Z + c − log n; 0 for a plain mean.
    """

    value: float
    loss: float
    records: int
    weight_ess: float
    max_weight: float
    log_normalizer: float


class GlobalBatch:
    """Accumulates one optimisation step; see the module docstring. Create one per run and call :meth:`begin` per step.

    Usage per step::

        batch.begin(micro_batches)
        for each micro-batch:
            weights, rescale = batch.add(losses, factors, valid)
            if last: rescale *= batch.exchange()
            multiply accumulated gradients by rescale (if it is not 1)
            (weights * losses).sum().backward()      # synchronising gradients (mean over ranks) at the last one
        multiply gradients by batch.final_scale

    Args:
        config: the objective.
        group: process group, or ``None`` for one process.
        sync_every_micro_batch: gradients are reduced at every micro-batch (FSDP), so ranks must share one offset throughout.

    Raises:
        ConfigError: ``scope: rank`` with ``sync_every_micro_batch``, which cannot be expressed.
    """

    def __init__(self, config: ObjectiveConfig, *, group: dist.ProcessGroup | None = None, sync_every_micro_batch: bool = False):
        if sync_every_micro_batch and config.scope == "rank":
            raise ConfigError(
                "objective.scope 'rank' does not work with execution.strategy 'fsdp'",
                hint="use scope 'global' (exact) or 'micro', or strategy 'ddp'",
            )
        self.config, self._group, self._sync_every = config, group, sync_every_micro_batch
        self.world_size = dist.get_world_size(group) if group is not None else 1
        self.carried_offset: float | None = None
        self.begin(1)

    def begin(self, micro_batches: int) -> None:
        """Start an optimisation step of ``micro_batches`` on this rank (at least 1; an empty one has ``valid`` all False)."""
        self._micro_batches = micro_batches
        self._offset = self.carried_offset  # shared by all ranks: it comes out of an exchange
        self._started = False
        self._sums = torch.zeros_like(_POWERS)
        self._max_weight = 0.0
        self._micro_value = 0.0
        self.final_scale = 1.0

    def add(self, losses_B: Tensor, factors_B: Tensor, valid_B: Tensor) -> tuple[Tensor, float]:
        """Weights for this micro-batch's backward, and the factor for the gradient accumulated before it.

        Args:
            losses_B: unreduced ℓ, shape (B,); only values are read.
            factors_B: h ≥ 0, shape (B,).
            valid_B: bool; records without a preference (and padding) count for nothing.

        Returns:
            (weights of shape (B,) in the dtype of the losses, rescale factor ≤ 1)
        """
        t = terms(torch.where(valid_B, losses_B, 0.0), torch.where(valid_B, factors_B, 1.0), self.config)
        scores_B = (t.exponent_B + t.log_base_B).masked_fill(~valid_B, -math.inf)
        if self.config.scope == "micro":
            return self._micro_weights(t, scores_B, losses_B, factors_B, valid_B), 1.0
        rescale = self._move_offset(scores_B)
        shares_B = (scores_B - (self._offset or 0.0)).exp()
        self._count(t, shares_B, losses_B, factors_B, valid_B)
        return (t.slope_B * shares_B).to(losses_B.dtype), rescale

    def exchange(self) -> float:
        """Call once, between the last ``add`` and the last backward: agree on offsets and set :attr:`final_scale`.

        Returns:
            Factor for everything accumulated on this rank, the last micro-batch included (multiply its weights too).
        """
        if self.config.scope != "global":
            local = 1.0 if self.config.scope == "micro" else self._scale(self._sums)
            self._total, self._total_max = self._sums, self._max_weight
            return local
        offset = -math.inf if self._offset is None else self._offset
        mine = torch.tensor([offset, self._max_weight, *self._sums.tolist()], dtype=torch.float64)
        everyone = self._all_gather(mine)
        shared = float(everyone[:, 0].max())
        if shared == -math.inf:
            shared = 0.0
        corrections = (everyone[:, 0] - shared).exp()
        self._total = (everyone[:, 2:] * corrections[:, None] ** _POWERS).sum(dim=0)
        self._total_max = float((everyone[:, 1] * corrections).max())
        correction = math.exp(offset - shared)
        self._offset = self.carried_offset = shared
        self.final_scale = self._scale(self._total) * self.world_size  # DDP and FSDP average over ranks
        return correction

    def report(self) -> StepReport:
        """Diagnostics of the step, valid after :meth:`exchange`."""
        z, records, _, loss_sum, weight_sum, weight_sum2, _ = self._total.tolist()
        n = max(records, 1.0)
        log_normalizer = math.log(max(z, 1e-300) / n) + (self._offset or 0.0) if records else 0.0
        return StepReport(
            value=self._value(log_normalizer),
            loss=loss_sum / n,
            records=int(records),
            weight_ess=weight_sum**2 / (n * weight_sum2) if weight_sum2 > 0 else 0.0,
            max_weight=self._total_max / weight_sum if weight_sum > 0 else 0.0,
            log_normalizer=log_normalizer,
        )

    # ----------------------------------------------------------------------------------------------------- internals

    def _move_offset(self, scores_B: Tensor) -> float:
        """Raise (or first set) the offset if these scores need it; returns the factor that keeps the past consistent."""
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
        self._sums = self._sums * rescale**_POWERS
        self._max_weight *= rescale
        self._offset = top
        return rescale

    def _count(self, t: Terms, shares_B: Tensor, losses_B: Tensor, factors_B: Tensor, valid_B: Tensor) -> None:
        weights_B, losses_B = t.slope_B.abs() * shares_B, torch.where(valid_B, losses_B.detach(), 0.0)
        parts = (shares_B, valid_B, factors_B * valid_B, losses_B, weights_B, weights_B**2, t.slope_B * losses_B)
        self._sums = self._sums + torch.stack([p.double().sum() for p in parts]).cpu()
        self._max_weight = max(self._max_weight, float(weights_B.max()) if weights_B.numel() else 0.0)

    def _micro_weights(self, t: Terms, scores_B: Tensor, losses_B: Tensor, factors_B: Tensor, valid_B: Tensor) -> Tensor:
        """Scope ``micro``: this micro-batch is its own world, and the step is the plain mean over micro-batches."""
        if not bool(valid_B.any()):
            return torch.zeros_like(losses_B)
        top = scores_B.max()
        shares_B = (scores_B - top).exp()
        shares_B = shares_B / shares_B.sum()
        outer = factors_B[valid_B].double().mean() if self.config.name == "dora_outer" else 1.0
        self._count(t, shares_B, losses_B, factors_B, valid_B)
        self._micro_value += float(value(losses_B.detach()[valid_B], factors_B[valid_B], self.config)) / self._micro_batches
        return (outer * t.slope_B * shares_B / self._micro_batches).to(losses_B.dtype)

    def _scale(self, sums: Tensor) -> float:
        """A / Z: the factor that turns Σ g b e^{s−c} ∇ℓ into the objective's gradient."""
        z, records, factor_sum = sums[0].item(), sums[1].item(), sums[2].item()
        if z <= 0.0:
            return 0.0
        return (factor_sum / records if self.config.name == "dora_outer" else 1.0) / z

    def _value(self, log_normalizer: float) -> float:
        _, records, factor_sum, _, _, _, slope_loss = self._total.tolist()
        n, lam = max(records, 1.0), self.config.lam
        if self.config.scope == "micro":
            return self._micro_value
        match self.config.name:
            case "erm" | "reweight":
                return slope_loss / n
            case "dro" | "dora":
                return lam * log_normalizer
            case "dora_outer":
                return factor_sum / n * lam * log_normalizer
            case "dora_tilted":
                return lam * (log_normalizer - math.log(max(factor_sum, 1e-300) / n))
            case "dr_dpo":
                return -lam * log_normalizer

    def _all_gather(self, mine: Tensor) -> Tensor:
        """(ranks, len) in float64. Two ranks of one GPU job meet here once per step."""
        if self._group is None:
            return mine[None]
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(self._group) == "nccl" else torch.device("cpu")
        everyone = [torch.empty_like(mine, device=device) for _ in range(self.world_size)]
        dist.all_gather(everyone, mine.to(device), group=self._group)
        return torch.stack(everyone).cpu()
