"""Settings of the stage ``benchmarks``: tasks of lm-eval before and after alignment."""

from __future__ import annotations

from pydantic import Field, field_validator

from dora_core.strict_model import StrictModel


class BenchmarksConfig(StrictModel):
    """Tasks that show whether alignment cost ability, on the start and on the aligned policy (``dora_core/evaluation/benchmarks.py``)."""

    tasks: list[str] = Field(
        min_length=1,
        max_length=64,
        description="Tasks of lm-eval by name (arc_easy), or paths of their YAML files, whose `data_files` are relative to the file.",
    )
    shots: int | None = Field(None, ge=0, le=64, description="Examples in the context; null = the task's own number.")
    limit: int | None = Field(None, ge=1, description="First examples of each task; null = all.")
    chat_template: bool = Field(False, description="Put questions into the policy's chat template.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the examples in the context.")

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, tasks: list[str]) -> list[str]:
        if repeated := sorted({task for task in tasks if tasks.count(task) > 1}):
            raise ValueError(f"a task is listed twice: {', '.join(repeated)}")
        return tasks

    @property
    def files(self) -> list[str]:
        """The tasks that are YAML files, as written."""
        return [task for task in self.tasks if is_file(task)]


def is_file(task: str) -> bool:
    """Whether a task is the path of a YAML file rather than a name."""
    return task.endswith((".yaml", ".yml"))
