"""Statuses of runs by the exception that ended them."""

from __future__ import annotations

from typing import get_args

import pytest

from dora_core.errors import ConfigError, RunStopped
from flows.run_record import RunStatus
from flows.running.question import Question, Suspends
from flows.running.states import MLFLOW_STATUS, describe, status_after
from infra.ray_jobs import RESUME

QUESTION = Question("m", "2", "d" * 64, "1", 0.0, "?")


@pytest.mark.parametrize(
    ("error", "status", "tracked"),
    [
        (None, "completed", "FINISHED"),
        (Suspends(QUESTION), "waiting", "FINISHED"),
        (RunStopped("KL is 99"), "stopped", "FAILED"),
        (ConfigError("a"), "failed", "FAILED"),
        (KeyError("a"), "failed", "FAILED"),
        (KeyboardInterrupt(), "cancelled", "KILLED"),
        (SystemExit(143), "cancelled", "KILLED"),
    ],
)
def test_how_a_run_ended(error: BaseException | None, status: RunStatus, tracked: str) -> None:
    assert (status_after(error), MLFLOW_STATUS[status]) == (status, tracked)


def test_every_final_status_has_one_in_mlflow() -> None:
    assert {*MLFLOW_STATUS} == {*get_args(RunStatus)} - {"running"}


def test_an_error_keeps_its_hint_and_an_interrupt_says_how_to_go_on() -> None:
    assert describe(ConfigError("a", hint="b")).model_dump() == {"message": "a", "hint": "b"}
    assert describe(KeyboardInterrupt()).hint == RESUME
    assert describe(ValueError()).message == "ValueError" and describe(ValueError("x")).message == "ValueError: x"
