"""Callbacks of progress."""

from __future__ import annotations

from typing import Any

from flows.cli.output import Bars, Lines
from flows.running.observer import COMMAND, Observer
from flows.running.supervise import ProgressArtifacts
from tests.flows.running.planned import plan_of


def callbacks(kind: type[Any]) -> set[str]:
    return {name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}


def test_every_observer_has_only_callbacks_that_are_called() -> None:
    for kind in (Lines, Bars, ProgressArtifacts):
        assert issubclass(kind, Observer) and callbacks(kind) <= callbacks(Observer)


def test_one_without_a_command_watches_nothing_and_decides_nothing() -> None:
    assert COMMAND.get() is None
    [stage] = plan_of(1).stages
    observer = Observer()
    observer.started(stage)
    observer.event(stage, {"kind": "progress"})
    observer.finished(stage, "failed", None)
    assert observer.decide(None) is None  # type: ignore[arg-type,func-returns-value]
