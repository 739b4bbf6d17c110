"""Metrics on the MLflow run of the whole run, for comparing runs; and one MLflow run per self-training round, above those of its stages.

In self-training these are metrics of the round's run, and of the parent's with the round as step: its page then draws curves.
"""

from __future__ import annotations

from flows.planning.planned_stage import PlannedStage
from infra.store.json_files import StoredResult
from infra.tracking.outbox import Status
from infra.tracking.tracker import Tracker
from tasks.stages.registry import STAGES, parse_result


class RoundRuns:
    """MLflow runs of rounds, each opened at its round's first stage. Outside self-training stages go under the parent.

    Args:
        parent: local id of the whole run; None for a run without work, which logs nothing.
    """

    def __init__(self, tracker: Tracker, parent: str | None, run_id: str):
        self._tracker, self._parent, self._run_id = tracker, parent, run_id
        self._runs: dict[int, str] = {}

    def parent_of(self, stage: PlannedStage) -> str:
        """Return the parent of a stage's run."""
        assert self._parent is not None, "a stage that runs has a run above it"
        if stage.round is None:
            return self._parent
        if stage.round not in self._runs:
            tags = {"dora.run_id": self._run_id, "dora.round": str(stage.round)}
            self._runs[stage.round] = self._tracker.start_run(f"round {stage.round}", parent=self._parent, tags=tags)
        return self._runs[stage.round]

    def log(self, stage: PlannedStage, result: StoredResult) -> None:
        """Log the tracked metrics of a finished stage, cached or not; an estimate with its bounds, ``<name>_low`` and ``<name>_high``."""
        tracked = STAGES[stage.stage].tracked
        if not tracked or self._parent is None:
            return
        values = dict(result["metrics"])
        for name, interval in STAGES[stage.stage].intervals(parse_result(result)).items():
            values |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        shown = {name: value for name, value in values.items() if name.startswith(tracked)}
        self._tracker.log_metrics(self.parent_of(stage), shown)
        if stage.round is not None:
            self._tracker.log_metrics(self._parent, {f"round/{name}": value for name, value in shown.items()}, step=stage.round)

    def finish(self, status: Status) -> None:
        """Finish the rounds: the last one with the run's status, those before it as finished."""
        last = max(self._runs, default=None)
        for number, run in self._runs.items():
            self._tracker.finish(run, status if number == last else "FINISHED")
