"""ASHA with decisions that an earlier attempt made, and room for trials with several workers, without a cluster."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.tune.schedulers import TrialScheduler

from dora_core.config.execution import Execution
from dora_core.config.tuning import TuneConfig
from dora_core.errors import ServiceError
from infra.store.journal import JournalWriter
from infra.store.store import Store
from tasks.runtime.spec import StageRef
from tasks.runtime.stage import StageContext
from tasks.stages import _tune_search
from tasks.stages._tune_search import STOPPED, Halving, Search

STOP, CONTINUE = TrialScheduler.STOP, TrialScheduler.CONTINUE
REFS = [StageRef(stage="trial", digest=digit * 64) for digit in "abcd"]


@pytest.fixture
def search(tmp_path: Path) -> Search:
    folder = Store(str(tmp_path)).folder("tune", "0" * 64)
    (folder.path / "scratch").mkdir()
    context = StageContext(Store(str(tmp_path)), folder, JournalWriter(folder), logging.getLogger("test"))
    return Search(context, TuneConfig(rungs=2, reduction=3), REFS)


def run(halving: Halving, scores: dict[str, float], milestone: int, last: int = 3) -> dict[str, Any]:
    """Report a score of every trial at one milestone, in order; returns the decisions."""
    decisions = {}
    for digest, score in scores.items():
        trial = SimpleNamespace(trial_id=digest, config={"digest": digest})
        if milestone == 1:
            halving.on_trial_add(None, trial)
        result = {"milestone": milestone, "score": score, "done": milestone == last}
        decisions[digest] = halving.on_trial_result(None, trial, result)
    return decisions


def prepared(search: Search) -> Halving:
    halving = Halving(search)
    assert halving.set_search_properties("score", "min")
    return halving


def test_the_best_third_goes_on_and_stops_are_remembered(search: Search) -> None:
    # The cut-off at a rung is the score's upper third so far: .5 alone, then .4, then .3 are the best there; .6 is not.
    halving = prepared(search)
    decisions = run(halving, {ref.digest: score for ref, score in zip(REFS, (0.5, 0.4, 0.3, 0.6), strict=True)}, 1)
    assert [*decisions.values()] == [CONTINUE, CONTINUE, CONTINUE, STOP]
    assert search.stopped == {REFS[3].digest: 1}
    assert search.context.store.read_json(f"tune/{'0' * 64}/{STOPPED}") == search.stopped
    assert run(halving, {REFS[2].digest: 0.2}, 3) == {REFS[2].digest: STOP}
    assert search.stopped == {REFS[3].digest: 1}, "a trial at its end was not stopped"


def test_what_an_earlier_attempt_stopped_stays_stopped_whatever_comes_in_first(search: Search) -> None:
    search.stopped = {REFS[0].digest: 1}
    decisions = run(prepared(search), {REFS[0].digest: 0.1, REFS[1].digest: 0.2}, 1)
    assert decisions[REFS[0].digest] == STOP
    assert search.stopped.keys() == {REFS[0].digest} | {digest for digest, decision in decisions.items() if decision == STOP}


def test_ray_tune_can_write_its_record_of_a_search(search: Search) -> None:
    scheduler, callback = ray.cloudpickle.loads(ray.cloudpickle.dumps((prepared(search), _tune_search._Results(search))))
    assert isinstance(scheduler, Halving) and isinstance(callback, _tune_search._Results)


def test_as_many_trials_with_several_workers_as_the_cluster_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 64.0, "GPU": 8.0})
    wide = Execution(workers=2, gpus_per_worker=1, cpus_per_worker=4)
    assert _tune_search._most(wide, None, inside=False) == 4, "8 GPUs for two a trial"
    assert _tune_search._most(wide, 3, inside=False) == 3
    assert _tune_search._most(wide, None, inside=True) is None
    with pytest.raises(ServiceError, match=r"16 workers of 4 CPUs and 1 GPUs; the cluster has 64 CPUs and 8 GPUs"):
        _tune_search._most(wide.evolve(workers=16), None, inside=False)
