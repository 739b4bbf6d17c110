"""Facts of the stage ``tune``: what every trial tried, how far it came, and how well it orders held-out golden preferences."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dora_core.evaluation.metrics import Interval
from dora_core.strict_model import StrictModel
from tasks.runtime.facts import Facts as BaseFacts

State = Literal["finished", "stopped", "failed", "out of time"]
"""``stopped``: by ASHA, at a rung; ``out of time``: when the budget of minutes ended it, or before it began."""


class TrialRung(StrictModel):
    """A measurement of a trial on the way."""

    step: int
    loss: float = Field(description="Golden loss, nats.")
    accuracy: float


class TrialFacts(StrictModel):
    """One trial."""

    name: str = Field(description="`as configured`, or `trial 3`.")
    digest: str = Field(description="Of the stage trial.")
    values: dict[str, Any] = Field(description="Values that it tries, by key; empty for the configuration as it is.")
    state: State
    reason: str = Field("", description="Error of a failed trial.")
    steps: int = Field(0, description="Optimisation steps that its last measurement follows; 0 without one.")
    planned: int = Field(0, description="Optimisation steps of the whole trial; 0 where it never began.")
    loss: Interval | None = Field(None, description="Log-loss of held-out golden preferences, nats; null without a measurement.")
    accuracy: Interval | None = None
    gain: Interval | None = Field(
        None,
        description="Golden loss of the first trial minus this one's, nats, paired by prompt, at the last rung of both; null without one.",
    )
    rungs: list[TrialRung] = Field(default_factory=list)


class Facts(BaseFacts):
    """See the module docstring."""

    trials: list[TrialFacts] = Field(description="Best first; those that came farther before those that were stopped.")
    metric: Literal["loss", "accuracy"]
    reason: str = Field(description="The outcome, in a sentence.")
    improves: bool = Field(description="Whether the best trial's interval over the configuration as it is lies above 0.")
    golden_prompts: int = Field(description="Held-out prompts that judged.")
    computed: int = Field(description="Measurements that were computed in this attempt; the others were there.")

    @property
    def best(self) -> TrialFacts:
        return self.trials[0]
