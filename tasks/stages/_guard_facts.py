"""Facts of the stage ``guard``: every rule with its evidence."""

from __future__ import annotations

from pydantic import Field

from dora_core.evaluation.diversity import Diversity
from dora_core.strict_model import StrictModel
from tasks.runtime.facts import Facts as BaseFacts


class Rule(StrictModel):
    """A judged rule; ``passed`` is null without a threshold or a value."""

    name: str
    value: float | None
    threshold: float | None
    passed: bool | None
    message: str


class Facts(BaseFacts):
    """Facts of the stage ``guard``."""

    round: int
    passed: bool = Field(description="No rule is broken.")
    rules: list[Rule]
    diversity: Diversity | None = Field(description="Of the samples; null where none were given.")
