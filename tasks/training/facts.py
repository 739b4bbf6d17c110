"""Facts that every training stage has: its size, the curve of its steps, and the settings it trained with."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ConfigDict, Field

from dora_core.strict_model import StrictModel
from tasks.runtime.facts import Facts
from tasks.training.report import TrainingReport


class Curve(StrictModel):
    """Numbers per optimisation step. Besides ``step`` every key is a measure: loss, gradient norm, learning rate, throughput, and the
    task's own (accuracy, weights of an objective, …).
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, list[float]] = Field(init=False)

    step: list[int]

    @property
    def measures(self) -> dict[str, list[float]]:
        """Values of every measure by its name."""
        return self.__pydantic_extra__


class LossSettings(StrictModel):
    """Settings of the loss: its name, and its own parameters."""

    model_config = ConfigDict(extra="allow")

    name: str
    beta: float | None = Field(None, description="Scale of the implicit reward, for losses that have one.")


class ObjectiveSettings(StrictModel):
    """Settings of the objective: its name, and its own parameters."""

    model_config = ConfigDict(extra="allow")

    name: str


class HeavyRecord(StrictModel):
    """A record that often had the largest weight of a step."""

    record_id: str
    steps: int = Field(description="Steps in which it weighed most.")
    max_weight: float = Field(description="Its largest share of a step's weight.")


class TrainingFacts(Facts):
    """Facts of a training stage; a stage sets the optional ones that apply to it."""

    records: int = Field(description="Training examples.")
    unpaired: int | None = Field(None, description="Training records of one labelled response; absent where there are none.")
    steps: int = Field(description="Optimisation steps.")
    resumed_from: int | None = Field(description="Step of the checkpoint that the last attempt started from; null = none.")
    curve: Curve
    loss: LossSettings | None = None
    objective: ObjectiveSettings | None = None
    heaviest: list[HeavyRecord] = Field(default_factory=list, description="Records that most often weighed most in a step.")

    @classmethod
    def of(cls, report: TrainingReport, records: int, **own: Any) -> Self:
        """Facts of a report; ``own`` are the stage's further fields."""
        curve = Curve.model_validate({"step": list(range(report.steps))} | report.curve)
        common = {"warnings": report.warnings, "steps": report.steps, "resumed_from": report.resumed_from}
        return cls(records=records, curve=curve, **common | own)
