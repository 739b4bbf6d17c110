"""Report of a finished training: from the workers to the stage."""

from __future__ import annotations

from pydantic import Field

from dora_core.strict_model import StrictModel


class TrainingReport(StrictModel):
    """Result of :func:`tasks.training.launch.launch`, written by rank 0."""

    steps: int = Field(description="All optimisation steps, resumed ones too.")
    planned_steps: int = Field(description="Steps of the schedule, or those until a pause.")
    resumed_from: int | None = Field(description="Step of the checkpoint that the last attempt started from; null = none.")
    curve: dict[str, list[float]] = Field(description="Value of each measure at each step.")
    records: int = Field(description="Training examples.")
    warnings: list[str] = Field(description="One sentence each, for people.")
    files: list[str] = Field(default_factory=list, description="Saved files, relative to the stage's folder.")
    memory: int | None = Field(description="Peak of rank 0's process, bytes; null where the system does not tell.")
