"""Facts of the stage ``race``: every entrant's golden loss, and the choice."""

from __future__ import annotations

from pydantic import Field

from dora_core.evaluation.metrics import Interval
from dora_core.objectives.settings import ObjectiveConfig
from dora_core.strict_model import StrictModel
from tasks.runtime.facts import Facts as BaseFacts


class Standing(StrictModel):
    """One entrant of the race."""

    name: str = Field(description="golden_only, erm, reweight, `κ 0.1 · h`, `dora @ 0.7` …, each with `+ trust` where labels are softened.")
    loss: float = Field(description="Cross-fitted loss of golden preferences, nats; log 2 is chance.")
    excess: float = Field(description="Loss above that of the best weighting, nats.")
    error: float | None = Field(description="Standard error of `excess`; null for the best weighting.")
    share: float = Field(0.0, description="Share in the averaged record weights; 0 for robust objectives that were not chosen.")


class Finalist(StrictModel):
    """A way to align that short trainings compare (``race.by: training``)."""

    title: str = Field(description="The entrant, or `average of weightings`.")
    objective: ObjectiveConfig
    mean_weight: dict[str, float] = Field(description="Mean weight of the records of each source of labels, golden = 1.")
    loss: Interval | None = Field(None, description="Golden loss of its short training, nats; null before, and where that has none.")
    gain: Interval | None = Field(None, description="Golden loss of the proxy's choice minus this one's, nats, paired by prompt.")
    steps: int = Field(0, description="Optimisation steps of its short training.")


class Facts(BaseFacts):
    """See the module docstring."""

    standings: list[Standing] = Field(description="Lowest loss first.")
    reason: str = Field(description="The choice, in a sentence.")
    decided: bool = Field(description="Whether the golden losses of erm and golden_only differ by more than one standard error.")
    objective: ObjectiveConfig = Field(description="Objective that training uses, on the weights of this stage's table.")
    golden_prompts: int = Field(description="Prompts with golden labels that judged.")
    pairs: int = Field(description="Pairs of the proxy.")
    finalists: dict[str, Finalist] = Field(default_factory=dict, description="By name; empty where the proxy alone decides.")
    ridge: float = Field(description="Ridge of every fit.")
    mean_weight: dict[str, float] = Field(description="Mean weight of the records of each source of labels, golden = 1.")
