"""Earlier runs of a project, and the facts of their stages.

Run ids begin with the project and end in date, time and a random part (``flows/running/manifest.py``), so that the newest manifests of one
project are read and no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from flows.run_record import RunRecord, read_record
from infra.store.store import Store
from tasks.runtime.descriptor import StageResult, read_result
from tasks.runtime.facts import F
from tasks.runtime.spec import StageRef
from tasks.stages import evaluate

SHOWN = 30
"""Runs in a trend."""
READ = 100
"""Manifests that are read to find them."""


def projects(store: Store) -> list[str]:
    """Return the projects that have runs; those with the newest run first."""
    newest: dict[str, list[str]] = {}
    for run_id in store.list("runs"):
        newest[_project(run_id)] = max(newest.get(_project(run_id), []), _when(run_id))
    return sorted(newest, key=lambda project: newest[project], reverse=True)


def runs_of(store: Store, project: str, before: str | None = None) -> Iterator[RunRecord]:
    """Yield a project's runs, newest first.

    Args:
        before: id of a run; only runs that were started earlier.
    """
    ids = [run_id for run_id in store.list("runs") if _project(run_id) == project and (before is None or _when(run_id) < _when(before))]
    for run_id in islice(sorted(ids, key=_when, reverse=True), READ):
        record = read_record(store, run_id)
        if record is not None:
            yield record


def last_run(store: Store, run: RunRecord) -> RunRecord | None:
    """Return the last completed run of the same flow before ``run``: the one that its numbers and settings are compared with."""
    earlier = runs_of(store, run.project, before=run.run_id)
    return next((one for one in earlier if one.status == "completed" and one.flow == run.flow), None)


def evaluated(runs: Iterable[RunRecord], count: int = SHOWN) -> list[RunRecord]:
    """Return the first ``count`` completed runs with an evaluation, in reverse: of :func:`runs_of`, oldest first."""
    ended = (run for run in runs if run.status == "completed")
    found = (run for run in ended if any(entry.stage == evaluate.STAGE.name and entry.is_finished for entry in run.stages))
    return list(islice(found, count))[::-1]


def result_in(store: Store, run: RunRecord, stage: str, facts: type[F]) -> StageResult[F] | None:
    """Return the result of the last finished entry of a stage; computed and cached ones count alike."""
    done = [entry for entry in run.stages if entry.stage == stage and entry.is_finished and entry.digest]
    return read_result(store, StageRef(stage=stage, digest=done[-1].digest), facts) if done else None


def facts_in(store: Store, run: RunRecord | None, stage: str, facts: type[F]) -> F | None:
    """Return the facts of :func:`result_in`; None also without a run."""
    result = None if run is None else result_in(store, run, stage, facts)
    return None if result is None else result.facts


def _project(run_id: str) -> str:
    return run_id.rsplit("-", 3)[0]


def _when(run_id: str) -> list[str]:
    return run_id.rsplit("-", 3)[1:]
