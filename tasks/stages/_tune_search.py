"""Ray Tune over trials: schedule, early stopping, budget, and decisions that survive a kill.

A trial is a class ``Trainable`` whose step is one rung of the stage ``trial``, so between two steps nothing of it runs, and a decision of
the scheduler loses no work. Ray Tune's own record of an experiment is not read again: after a kill a new experiment replays the rungs
in the store, which costs nothing, and the stops that an earlier attempt decided (``scratch/stopped.json``) hold.

A trial with one worker trains in its Ray Tune process, with that worker's resources. One with several starts Ray Train for every rung,
which claims its own resources; only as many trials start as the cluster has room for, or two would wait for each other.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from dora_core.config.execution import Execution
from dora_core.config.tuning import TuneConfig
from dora_core.environment import set_default
from dora_core.errors import DoraError, ServiceError
from dora_core.remote_files import ray_storage
from infra.store.journal import JournalWriter
from infra.store.json_files import StoredError
from infra.store.locks import ownership
from infra.store.store import SPEC, Store
from tasks.runtime.cluster import check_fits
from tasks.runtime.spec import StageRef
from tasks.runtime.stage import StageContext, describe_error, prepare_process
from tasks.runtime.workers import use_threads
from tasks.stages import trial

FAILED = "failed.json"
STOPPED = "scratch/stopped.json"
WORST = 1e9
"""Score of a trial that failed; Ray Tune's quantiles have no infinities."""


@dataclass
class Search:
    """A search's state, which Ray Tune's callbacks change.

    Attributes:
        stopped: milestone at which ASHA stopped a trial, by digest; those of earlier attempts too.
        finished: digests of the trials that came to their end or failed.
        errors: deaths and unexpected exceptions, more than ``execution.align.max_failures`` of a trial, by digest.
        computed: measurements of this attempt.
    """

    context: StageContext
    settings: TuneConfig
    trials: list[StageRef]
    stopped: dict[str, int] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    errors: dict[str, str] = field(default_factory=dict)
    computed: int = 0
    _rungs: int = 0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles scheduler and callbacks into its record, which is not read again; a context has locks."""
        return {}

    def result(self, digest: str, result: dict[str, Any]) -> None:
        self.computed += result["computed"]
        self._rungs += 1
        if result["milestone"] >= self.settings.milestones[-1]:
            self.finished.add(digest)
        ended = len(self.finished) + len(self.stopped)
        self.context.progress(ended, len(self.trials), "trials", f"{self._rungs} measurements")

    def stop(self, digest: str, milestone: int) -> None:
        """Remember a decision, for the attempt after a kill."""
        self.stopped[digest] = milestone
        self.context.folder.write_json(STOPPED, self.stopped)


def run_trials(context: StageContext, trials: list[StageRef], settings: TuneConfig, execution: Execution, minutes: float | None) -> Search:
    """Run all trials on the cluster that this process is connected to.

    Args:
        execution: of every trial.
        minutes: budget of this attempt; None: no limit.

    Raises:
        ServiceError: a worker fits on no node.
    """
    set_default("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the store has all results
    set_default("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    check_fits(execution)
    earlier = context.store.read_json(f"{context.folder.stage}/{context.folder.digest}/{STOPPED}") or {}
    search = Search(context, settings, trials, stopped=dict(earlier))
    arguments = {"store_uri": context.store.uri}
    inside = execution.workers <= 1
    resources = {"CPU": execution.cpus_per_worker, "GPU": execution.gpus_per_worker} if inside else {"CPU": 0.0}
    trainable = tune.with_resources(TrialTrainable, tune.PlacementGroupFactory([resources]))
    is_local = context.store.remote is None
    filesystem, storage = ray_storage(str(Path(context.scratch / "ray-tune").resolve()) if is_local else _scratch_uri(context))
    tuner = tune.Tuner(
        trainable,
        param_space=arguments | {"digest": tune.grid_search([ref.digest for ref in trials])},
        tune_config=tune.TuneConfig(
            metric="score",
            mode="min",
            scheduler=Halving(search),
            max_concurrent_trials=_most(execution, settings.parallel, inside),
            time_budget_s=None if minutes is None else 60.0 * minutes,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{time.time_ns()}",
            storage_path=storage,
            storage_filesystem=filesystem,
            failure_config=tune.FailureConfig(max_failures=execution.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a trial that starts again replays its rungs
            callbacks=[_Results(search)],
            verbose=0,
        ),
    )
    for result in tuner.fit():
        if result.error is not None:
            search.errors[result.config["digest"]] = str(result.error).strip().splitlines()[-1]
    return search


def _scratch_uri(context: StageContext) -> str:
    return f"{context.store.uri}/{context.folder.stage}/{context.folder.digest}/scratch/ray-tune"


def _name(of: Any) -> str:
    return f"trial-{of.config['digest'][:12]}"


def _most(execution: Execution, parallel: int | None, inside: bool) -> int | None:
    """Number of trials at the same time; None: as many as Ray Tune finds resources for."""
    if inside:
        return parallel
    total: dict[str, float] = ray.cluster_resources()
    rooms = [total.get("CPU", 0.0) / (execution.workers * execution.cpus_per_worker)]
    if execution.gpus_per_worker:
        rooms.append(total.get("GPU", 0.0) / (execution.workers * execution.gpus_per_worker))
    room = math.floor(min(rooms))
    if room < 1:
        raise ServiceError(
            f"a trial needs {execution.workers} workers of {execution.cpus_per_worker:g} CPUs and {execution.gpus_per_worker:g} GPUs; the "
            f"cluster has {total.get('CPU', 0.0):g} CPUs and {total.get('GPU', 0.0):g} GPUs",
            hint="lower execution.align.workers, or use a bigger cluster",
            retryable=False,
        )
    return min(room, parallel or room)


class TrialTrainable(tune.Trainable):  # type: ignore[misc]  # Ray has no types
    """One trial; a step is a rung. A trial that fails for good ends with a bad score instead of ending the search."""

    def setup(self, config: dict[str, Any]) -> None:
        prepare_process()
        store = Store(config["store_uri"])
        data = store.read_json(f"{trial.Spec.stage}/{config['digest']}/{SPEC}")
        self._planned = spec = trial.Spec.model_validate(data)
        if spec.execution.workers <= 1:
            spec = spec.evolve(execution=spec.execution.evolve(workers=0))
        use_threads(spec.execution)
        self._folder = store.folder(spec.stage, spec.digest())
        self._context = StageContext(store, self._folder, JournalWriter(self._folder), logging.getLogger("dora.trial"))
        self._spec, self._rungs = spec, trial.rungs(spec, self._context)
        self._left = list(spec.tune.milestones)

    def step(self) -> dict[str, Any]:
        """Measure the next rung, or find it measured: by an earlier attempt, or by another search that has the same trial."""
        store, spec = self._context.store, self._spec
        last = spec.tune.milestones[-1]
        ends = {"milestone": last, "score": WORST, "computed": 0, "done": True}
        if failure(store, self._planned) is not None:
            return ends
        milestone = self._left.pop(0)
        is_there = partial(trial.has_rung, spec, store, milestone)
        with ownership(store, spec.stage, spec.digest(), "a search", is_done=is_there, on_wait=self._context.log.info) as known:
            try:
                rung = next(self._rungs)
            except DoraError as error:
                if error.retryable:
                    raise
                resources = self._planned.execution.model_dump(mode="json")
                self._folder.write_json(FAILED, {"error": describe_error(error), "execution": resources})
                return ends
        score = rung.loss.value if spec.tune.metric == "loss" else -rung.accuracy.value
        return {"milestone": milestone, "score": score, "computed": int(not known), "done": milestone >= last}

    def cleanup(self) -> None:
        self._context.journal.flush()


def failure(store: Store, spec: trial.Spec) -> StoredError | None:
    """The error with which a trial ended; None with other resources than now, such as more memory: it is tried again."""
    found = store.read_json(f"{spec.stage}/{spec.digest()}/{FAILED}")
    if found is None or found["execution"] != spec.execution.model_dump(mode="json"):
        return None
    error: StoredError = found["error"]
    return error


class Halving(ASHAScheduler):  # type: ignore[misc]
    """ASHA, with decisions of earlier attempts."""

    def __init__(self, search: Search):
        settings = search.settings
        super().__init__(time_attr="milestone", max_t=settings.milestones[-1], grace_period=1, reduction_factor=settings.reduction)
        self._search = search

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        digest, milestone, known = trial.config["digest"], result["milestone"], self._search.stopped
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if milestone >= self._search.settings.milestones[-1]:
            return str(TrialScheduler.STOP)
        if digest in known:
            return str(TrialScheduler.STOP if milestone >= known[digest] else TrialScheduler.CONTINUE)
        if decision == TrialScheduler.STOP:
            self._search.stop(digest, milestone)
        return decision


class _Results(tune.Callback):  # type: ignore[misc]
    def __init__(self, search: Search):
        self._search = search

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        self._search.result(trial.config["digest"], result)
