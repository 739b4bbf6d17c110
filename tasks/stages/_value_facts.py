"""Facts of the stage ``value``: per source, trust in its labels and what they are worth."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dora_core.evaluation.metrics import Interval
from dora_core.strict_model import StrictModel
from tasks.runtime.facts import Facts as BaseFacts


class SourceValue(StrictModel):
    """One source of labels."""

    n: int = Field(description="Records with a label of the source.")
    auc: float | None = Field(None, description="Of the source's responses against golden ones, from the classifiers; null without them.")
    mean_h: float | None = Field(None, description="Mean calibration factor of the labelled records; null without factors.")
    method: Literal["overlap", "em", "reward_model"] | None = Field(None, description="Method of `agreement`; null where there is none.")
    agreement: Interval | None = Field(None, description="Probability that a label is the one people would give.")
    overlap: int = Field(0, description="Pairs of the source that have a golden label too.")
    rate: Interval | None = Field(None, description="Golden labels that one label is worth; null without exchange rates.")
    worth: float | None = Field(None, description="Golden labels that all labels of the source are worth.")
    verdict: Literal["use", "weight", "drop", "cannot tell"] | None = None
    profile: dict[str, float] = Field(default_factory=dict, description="Golden loss in nats by rate, the other sources at theirs.")


class Facts(BaseFacts):
    """See the module docstring."""

    golden_labels: int = Field(description="Records with a golden label.")
    golden_prompts: int
    sources: dict[str, SourceValue] = Field(description="By name, golden left out.")
    golden_loss: float | None = Field(None, description="Out-of-fold loss of golden labels under their own proxy, nats; log 2 is chance.")
    factor: str | None = Field(None, description="Factor that labels of sources carry in the best fit: none, h, trust or h·trust.")
    losses: dict[str, float] = Field(default_factory=dict, description="Golden loss in nats at the best rates, by factor.")
    golden_alone: float | None = Field(None, description="Golden loss in nats with no source.")
    all_alike: float | None = Field(None, description="Golden loss in nats with every label at weight 1.")
    fits: int = Field(0, description="Weightings that were tried.")
