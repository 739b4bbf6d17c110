"""Facts of the stage ``race``: every entrant's golden loss, and the choice."""

from __future__ import annotations

from pydantic import Field

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


class Facts(BaseFacts):
    """See the module docstring."""

    standings: list[Standing] = Field(description="Lowest loss first.")
    reason: str = Field(description="The choice, in a sentence.")
    decided: bool = Field(description="Whether the golden losses of erm and golden_only differ by more than one standard error.")
    objective: ObjectiveConfig = Field(description="Objective that training uses, on the weights of this stage's table.")
    golden_prompts: int = Field(description="Prompts with golden labels that judged.")
    pairs: int = Field(description="Pairs of the proxy.")
    ridge: float = Field(description="Ridge of every fit.")
    mean_weight: dict[str, float] = Field(description="Mean weight of the records of each source of labels, golden = 1.")
