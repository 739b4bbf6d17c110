"""Alignment: a preference loss under a robust objective, as a training task.

Computes the exact gradient of one optimisation step over all ranks and micro-batches (``dora_core/objectives/global_batch.py``); the
training records come from ``dora_core/training/alignment_data.py``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from dora_core.config.alignment import AlignConfig
from dora_core.config.execution import Execution
from dora_core.errors import TrainingError
from dora_core.losses import PreferenceBatch
from dora_core.losses.label_probability import refuse_label_probability
from dora_core.losses.noise_rates import NoiseRates
from dora_core.losses.unpaired import refuse_unpaired
from dora_core.models.logprobs import ResponseLogps
from dora_core.models.packing import PackedRows
from dora_core.models.response_rows import ResponseRows
from dora_core.objectives.global_batch import GlobalBatch
from dora_core.objectives.lambda_control import LambdaControl
from dora_core.training.alignment_data import AlignmentData, AlignmentRecord
from dora_core.training.distributed import Worker, gradient_sync, scale_gradients
from dora_core.training.look_ahead import Ahead, LookAhead
from dora_core.training.loop import Schedule

REFERENCE_TOLERANCE = {"float32": 0.02, "bfloat16": 0.5}
"""Largest |log π − log π_ref| per √token at step 0, nats; rounding grows with the square root of the length."""

HEAVIEST = "heaviest_row"  # metric: row of the records table that had the largest weight in a step; −1 if all weights are 0
WEIGHT_OF = "weight_share_"  # metric prefix: a source's share of a step's weights


class AlignmentTask:
    """A :class:`dora_core.training.loop.Task`: ``config.loss`` under ``config.objective`` on ``data``."""

    def __init__(
        self,
        logps: ResponseLogps,
        layers: list[nn.Module],
        data: AlignmentData,
        config: AlignConfig,
        execution: Execution,
        worker: Worker,
        pad_id: int,
    ):
        refuse_unpaired(config.loss, data.unpaired, len(data) + data.dropped)
        self._uncertain = data.uncertain if config.label_probability == "use" else 0
        refuse_label_probability(config.loss, self._uncertain, len(data) + data.dropped)
        self.module, self.layers = logps, layers
        self.tokens = data.tokens if logps.shares_prefix else data.unshared_tokens
        self.exact = config.objective.scope == "global"
        self._data, self._config, self._worker, self._pad_id = data, config, worker, pad_id
        steps = Schedule(len(data), config.optimization).steps
        self._lambda = LambdaControl(config.objective, steps)
        self._noise = NoiseRates(config.loss, data.sources, steps)
        self._objective = GlobalBatch(
            config.objective,
            groups=len(data.sources),
            keep_records=self._lambda.learns,
            group=worker.group,
            sync_every_micro_batch=execution.strategy == "fsdp",
        )
        self._ahead = LookAhead(config.loss, self._objective.objective, worker)

    def backward(self, module: nn.Module, micro_batches: list[list[int]], step: int) -> tuple[float, dict[str, float]]:
        """Accumulate the gradient of one step.

        Metrics, over records: ``accuracy``, the share whose margin is above 0, and ``margin``, its mean. The margin is the log-ratio of
        the best response minus that of the worst. Of an unpaired record it is the log-ratio itself, or its negative where the label is
        undesirable: right means that the policy made a desirable response more likely than the start did, or an undesirable one less.
        """
        objective = self._objective
        objective.begin(len(micro_batches), self._lambda.at(step))
        rates_S = self._noise.at(step)
        counts = torch.zeros(4, dtype=torch.float64, device=self._worker.device)  # records, correctly ordered, Σ margin, tokens
        noise_2S = torch.zeros(2, len(rates_S), dtype=torch.float64)
        ahead = self._look_ahead(module, micro_batches) if self._ahead.needed and len(micro_batches) > 1 else None
        for number, indices in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            records = self._records(indices)
            with gradient_sync(module, last):
                batch = self._forward(module, records, rates_S)
                valid_B = batch.trains_B & bool(indices)
                factors_B = _factors(records)
                if step == 0 and number == 0 and indices:
                    self._check_reference(batch)
                if self._ahead.needed:
                    ahead = ahead or self._use(self._ahead.of([batch], [valid_B], [factors_B]))
                    batch = dataclasses.replace(batch, partners_B2=ahead.partners[number])
                losses_B = self._config.loss(batch)
                rows_B = torch.tensor([r.row for r in records])
                shares_BG = self._source_shares(records)
                weights_B, rescale = objective.add(losses_B, factors_B, valid_B, rows_B, shares_BG)
                if last:
                    correction = objective.exchange()
                    weights_B, rescale = weights_B * correction, rescale * correction
                scale_gradients(module, rescale)
                (weights_B * losses_B).sum().backward()  # type: ignore[no-untyped-call]
            counts += self._count(batch, valid_B)
            if self._noise.learns:
                noise_2S += self._noise.sums(batch, valid_B, shares_BG)
        if self._lambda.learns:
            self._lambda.observe(*objective.gather_records())
        if self._noise.learns:
            self._noise.observe(step, self._worker.sum(noise_2S))
        return objective.final_scale, self._metrics(self._worker.sum(counts))

    def _records(self, indices: list[int]) -> list[AlignmentRecord]:
        """Records of a micro-batch; any one for an empty micro-batch, which runs with weight 0."""
        return [self._data[i] for i in indices] or [self._data[0]]

    def batch(self, indices: list[int]) -> PackedRows | ResponseRows:
        """The rows of a micro-batch; any for an empty one."""
        return self._collated(self._records(indices))

    def _collated(self, records: list[AlignmentRecord]) -> PackedRows | ResponseRows:
        return self.module.collate([r.responses for r in records], self._pad_id).to(self._worker.device)

    def _look_ahead(self, module: nn.Module, micro_batches: list[list[int]]) -> Ahead:
        """The step's numbers from a forward pass of its own over all micro-batches."""
        parts = [(self._records(indices), bool(indices)) for indices in micro_batches]
        devices = [self._worker.device] if self._worker.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):  # the second pass draws the same masks of the adapters' dropout
            batches = [self._forward(module, records) for records, _ in parts]
        valid = [batch.trains_B & has_records for batch, (_, has_records) in zip(batches, parts, strict=True)]
        return self._use(self._ahead.of(batches, valid, [_factors(records) for records, _ in parts]))

    def _use(self, ahead: Ahead) -> Ahead:
        if ahead.losses_n is not None and ahead.factors_n is not None:
            self._objective.look_ahead(ahead.losses_n, ahead.factors_n)
        return ahead

    def state(self) -> dict[str, Any]:
        return {"offset": self._objective.carried_offset} | self._lambda.state() | self._noise.state()

    def restore(self, state: dict[str, Any]) -> None:
        # Any offset gives the same gradient up to rounding; the same offset gives the same bits.
        self._objective.carried_offset = state["offset"]
        self._lambda.restore(state)
        self._noise.restore(state)

    def _source_shares(self, records: list[AlignmentRecord]) -> Tensor:
        """(B, sources): the share of each source among a record's responses, so that a record's weight can be split among them."""
        counts_BG = torch.zeros(len(records), len(self._data.sources), dtype=torch.float64)
        for b, record in enumerate(records):
            for source in record.sources:
                counts_BG[b, source] += 1.0 / len(record.sources)
        return counts_BG

    def _forward(self, module: nn.Module, records: list[AlignmentRecord], rates_S: Tensor | None = None) -> PreferenceBatch:
        """(B, N) log-probabilities of the records' responses, padded to the longest list."""
        rows = [response for record in records for response in record.responses]
        collated = self._collated(records)
        collisions_R = None
        if self._config.loss.reads_collisions:
            logps_R, collisions_R = module(collated, collisions=True)
        else:
            logps_R = module(collated)
        width = max(len(r.responses) for r in records)
        lengths = [len(r.responses) for r in records]
        return PreferenceBatch(
            policy_logps_BN=_pad(logps_R, lengths, width, 0.0),
            reference_logps_BN=_pad(logps_R.new_tensor([x for r in records for x in r.reference_logps]), lengths, width, 0.0),
            lengths_BN=_pad(logps_R.new_tensor([float(x.learned) for x in rows]), lengths, width, 1.0),
            rewards_BN=_pad(logps_R.new_tensor([x for r in records for x in r.rewards]), lengths, width, math.nan),
            mask_BN=_pad(torch.ones(len(rows), dtype=torch.bool, device=logps_R.device), lengths, width, False),
            unpaired_B=torch.tensor([r.unpaired for r in records], device=logps_R.device),
            noise_rates_B=self._source_shares(records) @ rates_S if rates_S is not None and self._noise.learns else None,
            log_collisions_BN=None if collisions_R is None else _pad(collisions_R, lengths, width, 0.0),
            label_probability_B=logps_R.new_tensor([r.label_probability for r in records]) if self._uncertain else None,
        )

    def _check_reference(self, batch: PreferenceBatch) -> None:
        """At step 0 the policy *is* the reference; a difference means a stale cache or the wrong model.

        Raises:
            TrainingError: log-probabilities differ by more than :data:`REFERENCE_TOLERANCE`.
        """
        gap = (batch.log_ratios_BN.detach().abs() / batch.lengths_BN.sqrt()).max().item()
        allowed = REFERENCE_TOLERANCE[self._config.optimization.precision]
        if not gap <= allowed:
            raise TrainingError(
                f"at step 0 policy and reference differ by {gap:.3g} nats per √token (allowed {allowed})",
                hint=mismatch_hint(self._config, gap, allowed, _dropout_of(self.module)),
            )

    def _count(self, batch: PreferenceBatch, valid_B: Tensor) -> Tensor:
        margin_B = batch.margins_B.detach()
        tokens = (batch.lengths_BN * batch.mask_BN * valid_B[:, None]).sum()
        numbers = (valid_B.sum(), ((margin_B > 0) & valid_B).sum(), (margin_B * valid_B).sum(), tokens)
        return torch.stack([n.double() for n in numbers])

    def _metrics(self, counts: Tensor) -> dict[str, float]:
        records, correct, margin, tokens = counts.tolist()
        step = self._objective.report()
        shares = {f"{WEIGHT_OF}{name}": share for name, share in zip(self._data.sources, step.group_weights, strict=True)}
        strength = {"lambda": step.lam} if self._objective.objective.uses_lambda else {}
        return (
            {
                "loss": step.loss,
                "objective": step.value,
                "accuracy": correct / max(records, 1.0),
                "margin": margin / max(records, 1.0),
                "log_normalizer": step.log_normalizer,
                "weight_ess": step.weight_ess,
                "max_weight": step.max_weight,
                HEAVIEST: -1.0 if step.heaviest is None else float(step.heaviest),
                "tokens": tokens,
            }
            | strength
            | shares
            | self._noise.metrics()
        )


def _factors(records: list[AlignmentRecord]) -> Tensor:
    return torch.tensor([r.factor for r in records], dtype=torch.float64)


def _pad(flat: Tensor, lengths: list[int], width: int, fill: Any) -> Tensor:
    """Flat values of ragged lists → (B, width)."""
    mask_BN = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
    padded_BN = flat.new_full((len(lengths), width), fill)
    return padded_BN.masked_scatter(mask_BN.to(flat.device), flat)


def mismatch_hint(config: AlignConfig, gap: float, allowed: float, dropout: float = 0.0) -> str:
    """Return the next step where policy and reference differ at step 0, the likeliest cause first.

    Args:
        gap: largest difference, nats per √token. allowed: its :data:`REFERENCE_TOLERANCE`.
        dropout: largest rate of a dropout layer of the policy.
    """
    precision, causes = config.optimization.precision, list[str]()
    if math.isnan(gap):
        causes.append(f"the start's log-probabilities are not numbers in {precision}: set align.optimization.precision: float32")
    lora = config.optimization.lora
    if lora is not None and lora.dropout > 0:
        causes.append(f"lora.dropout = {lora.dropout:g} switches inputs off at random: set it to 0")
    elif dropout > 0:
        causes.append(f"the model drops out at a rate of {dropout:g} in training: set its dropout rates to 0 in its config.json")
    if gap <= 3 * allowed and precision != "float32":
        causes.append(f"{precision} rounds in another way here than where the reference ran: write precision: float32")
    causes.append(
        "the reference log-probabilities belong to another model, tokenizer or truncation: delete the output of the stage reference and "
        "run again"
    )
    return causes[0] if len(causes) == 1 else "; or ".join(causes) + " (the likeliest first)"


def _dropout_of(policy: nn.Module) -> float:
    return max((module.p for module in policy.modules() if isinstance(module, nn.Dropout)), default=0.0)
