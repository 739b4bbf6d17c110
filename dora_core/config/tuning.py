"""Settings of short trainings that are compared with each other: ``dora tune``, and the race by training (``race.by: training``)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dora_core.strict_model import StrictModel


class TuneConfig(StrictModel):
    """Trials: short alignments, measured on golden preferences of train prompts that no trial trains on.

    A trial does ``fraction`` of the steps that its configuration would do in full, with a learning-rate schedule of its own. It is
    measured ``rungs`` times, the last at its end, each time after ``reduction`` times as many steps as before; at each but the last,
    asynchronous successive halving (ASHA, Li et al. 2020, arXiv 1810.05934) stops trials that are not among the best 1/``reduction``.
    """

    fraction: float = Field(0.25, gt=0, le=1, description="Share of the steps of align that a trial does which is never stopped.")
    rungs: int = Field(3, ge=1, le=6, description="Measurements of a trial; 1: only at its end, and no trial is stopped early.")
    reduction: int = Field(3, ge=2, le=10, description="ASHA's reduction factor.")
    folds: int = Field(
        5,
        ge=2,
        le=20,
        description="One of so many folds of the train prompts, by hash, is held out of every trial; its golden pairs judge.",
    )
    metric: Literal["loss", "accuracy"] = Field(
        "loss",
        description="Orders the trials. loss: log-loss of golden preferences under the policy's implicit reward at its best scale, so that "
        "losses of other scales compare; accuracy: share of golden pairs in the right order.",
    )
    parallel: int | None = Field(None, ge=1, description="Trials at the same time; null = as many as the cluster has room for.")
    bootstrap_samples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples, over held-out golden prompts.")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Level of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of the sampled values, of the fold, and of the bootstrap.")

    @property
    def milestones(self) -> list[int]:
        """ASHA's time of each rung, in units of the first: ``[1, 3, 9]``."""
        return [self.reduction**rung for rung in range(self.rungs)]

    def steps(self, planned: int) -> list[int]:
        """Optimisation steps at each rung of a trial of ``planned`` steps, rounded up."""
        return [-(-planned * milestone // self.milestones[-1]) for milestone in self.milestones]
