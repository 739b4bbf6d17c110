"""Settings of the benchmarks."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dora_core.config.benchmarks import BenchmarksConfig


def test_files_are_told_from_names() -> None:
    config = BenchmarksConfig(tasks=["arc_easy", "mine/toy.yaml", "other.yml"])
    assert config.files == ["mine/toy.yaml", "other.yml"]


@pytest.mark.parametrize("tasks", [[], ["arc_easy", "arc_easy"]])
def test_no_task_and_a_task_twice_are_refused(tasks: list[str]) -> None:
    with pytest.raises(ValidationError):
        BenchmarksConfig(tasks=tasks)
