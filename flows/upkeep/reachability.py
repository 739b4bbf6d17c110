"""Garbage-collection roots of a store, each with its reason, and all places that are reachable from them.

A *place* is a stage's folder, ``"align/<digest>"``. Needed are the places of

- runs under way: running, waiting for a person, or queued on the Prefect server (then the results of their project's last run);
- the aliases of the registry, the newest completed runs of each project and kind, the baseline of the next plan of a project
  (``projects/<project>/latest.json``), and runs that ended lately;
- unfinished stages that may still be computed, or whose answers cost money;
- stages whose journals wait to be sent to MLflow (``infra/tracking/outbox.py``);

each with all its inputs, by the ``inputs`` and the spec of its result. Of any other registered version weights and evaluation are
needed, not its inputs; and every decision about a promotion, so that it is not made twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dora_core.errors import ConfigError, DoraError
from flows.planning.latest import read_latest
from flows.run_record import RunRecord, read_records
from infra.back_ends import without_credentials
from infra.store.store import RESULT, SPEC, Store
from infra.tracking import model_registry as registry
from infra.tracking.outbox import waiting_places
from tasks.stages.registry import STAGES

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

    from flows.config.models import MethodConfig

GRACE_SECONDS = 3600.0
"""An unfinished stage with a younger change may still be running: it writes its journal every few seconds."""
QUEUE_SECONDS = 3600.0
"""A scheduled run that starts sooner counts as queued."""


@dataclass
class Folder:
    """Files of a place.

    Attributes:
        modified: epoch seconds of the last change.
        scratch: bytes of work in progress.
        has_answers: whether an unfinished stage has paid answers of an endpoint.
    """

    bytes: int = 0
    files: int = 0
    modified: float = 0.0
    scratch: int = 0
    is_finished: bool = False
    has_answers: bool = False
    temporary: list[tuple[str, float]] = field(default_factory=list)

    def add(self, name: str, size: int, modified: float) -> None:
        self.bytes, self.files, self.modified = self.bytes + size, self.files + 1, max(self.modified, modified)
        self.is_finished |= name == RESULT
        if name.startswith("scratch/"):
            self.scratch += size
            self.has_answers |= name.startswith("scratch/answers/")
        if name.endswith(".tmp"):
            self.temporary.append((name, modified))


@dataclass(frozen=True)
class Root:
    """A garbage-collection root; with ``inputs``, everything it was computed from is reachable too."""

    place: str
    why: str
    inputs: bool = True


@dataclass(frozen=True)
class Rules:
    """Rules by age and number that keep further runs and stages.

    Attributes:
        older_than: seconds; runs that ended, and stages that were written, within them.
        keep_runs: completed runs of each project and kind.
        now: epoch seconds.
    """

    older_than: float
    keep_runs: int
    now: float = field(default_factory=time.time)

    def is_young(self, folder: Folder) -> bool:
        return self.now - folder.modified < max(self.older_than, 0.0 if folder.is_finished else GRACE_SECONDS)


@dataclass
class Runs:
    """Manifests by run id, and the reason for each kept one.

    Attributes:
        live: runs under way.
        kept: ``{run id: why}``, the live ones among them.
    """

    records: dict[str, RunRecord]
    live: set[str]
    kept: dict[str, str]

    @classmethod
    def of(cls, store: Store, rules: Rules, under_way: Iterable[str]) -> Runs:
        """Classify the store's runs.

        Args:
            under_way: ids of flow runs that the Prefect server has as scheduled or running.
        """
        records = {run.run_id: run for run in read_records(store)}
        words = {"running": "running", "waiting": "waiting for a decision"}
        open_flow_runs = set(under_way)
        kept = {
            run_id: f"{run_id} is {words.get(run.status, 'under way')}"
            for run_id, run in records.items()
            if run.status in words or run.flow_run_id in open_flow_runs
        }
        live = set(kept)
        of_kind: dict[tuple[str, ...], int] = {}
        for run_id, run in sorted(records.items(), key=lambda item: -item[1].started):
            if run.status == "completed":
                kind = (run.project, run.flow, run.stages[-1].stage)
                of_kind[kind] = of_kind.get(kind, 0) + 1
                if of_kind[kind] <= rules.keep_runs:
                    kept.setdefault(run_id, f"the newest runs of {run.project}")
        for run_id, run in records.items():
            if rules.now - (run.finished or run.started) < rules.older_than:
                kept.setdefault(run_id, f"the last runs of {run.project}")
        return cls(records, live, kept)

    def last_of(self, project: str) -> list[RunRecord]:
        """Return the newest run of each kind of a project, however it ended."""
        newest = dict[str, RunRecord]()
        for run in sorted(self.records.values(), key=lambda run: run.started):
            if run.project == project:
                newest[run.flow] = run
        return list(newest.values())

    def roots(self, chosen: Iterable[str]) -> Iterator[Root]:
        for run_id in chosen:
            for place in self.records[run_id].places:
                yield Root(place, self.kept[run_id])


# ------------------------------------------------------------------------------------------------------- the other roots


def of_projects(store: Store) -> Iterator[Root]:
    """Yield the stages that the next plan of a project is compared with, and whose classifier it may keep."""
    for project in store.list("projects"):
        for entry in read_latest(store, project).values():
            yield Root(f"{entry.ref.stage}/{entry.digest}", f"the next run of {project}")


def of_folders(folders: Mapping[str, Folder], rules: Rules) -> Iterator[Root]:
    """Yield work in progress, and stages written lately."""
    for place, folder in folders.items():
        if not folder.is_finished and folder.has_answers:
            yield Root(place, "unfinished, with answers of an endpoint")
        elif rules.is_young(folder):
            yield Root(place, "written lately" if folder.is_finished else "unfinished, written lately")


def of_outbox(outbox: Path, store: Store) -> Iterator[Root]:
    """Yield stages whose journals this machine has yet to send to MLflow; the outbox holds references only."""
    for place in waiting_places(outbox, store.uri):
        yield Root(place, "its curves wait for MLflow", inputs=False)


def of_decisions(folders: Mapping[str, Folder]) -> Iterator[Root]:
    for place in folders:
        if place.startswith("promote/"):
            yield Root(place, "decisions", inputs=False)


def of_registry(uri: str, store: Store, folders: Mapping[str, Folder], *, may_be_empty: bool) -> Iterator[Root]:
    """Yield the places that registered versions need.

    Raises:
        ServiceError: MLflow is away. ConfigError: it has none of the models that the store's runs registered, so it is another registry.
    """
    versions = registry.versions(uri)
    known = {version.tags.get("dora.digest") for version in versions}
    decisions = (store.read_json(f"{place}/{RESULT}") for place in folders if place.startswith("promote/"))
    registered = {decision["spec"]["policy"]["digest"] for decision in decisions if decision is not None}
    if registered and not registered & known and not may_be_empty:
        raise ConfigError(
            f"MLflow at {without_credentials(uri)} has none of the {len(registered)} models that runs of {store.uri} registered",
            hint="name the registry of this store in DORA_MLFLOW_URI; if its models were deleted on purpose: dora gc --unregistered",
        )
    for version in versions:
        stage, digest, evaluation = (version.tags.get(f"dora.{tag}") for tag in ("stage", "digest", "evaluation"))
        names = " and ".join(version.aliases)
        why = f"{names} of {version.model}" if names else f"registered versions of {version.model}"
        yield from (Root(place, why, inputs=bool(names)) for place in (f"{stage}/{digest}", f"evaluate/{evaluation}"))


def of_queue(queue: Sequence[tuple[str, FlowRun]], runs: Runs) -> tuple[dict[str, str], list[str]]:
    """Return the runs whose results queued runs start from, with the reason: the last run of their project, of each kind. Where a queued
    run's project is not known: all runs, with a note."""
    started = {record.flow_run_id for record in runs.records.values()}
    needed, notes = dict[str, str](), list[str]()
    for flow, run in queue:
        if str(run.id) in started:
            continue
        why = f"{run.name} is queued"
        try:
            left = runs.last_of(_project(flow, run.parameters))
        except (DoraError, ValueError) as error:
            notes.append(f"{why}, and its project is not known: all results of earlier runs stay. {error}")
            left = list(runs.records.values())
        for record in left:
            needed.setdefault(record.run_id, why)
    return needed, notes


def _project(flow: str, parameters: dict[str, Any]) -> str:
    """Return the project of a run that has not started, from a command's configuration or the form of a deployment.

    Raises:
        DoraError: its configuration file cannot be read.
    """
    from flows.config.models import RealignConfig, SelfTrainConfig, StudyConfig
    from flows.deployment.forms import DEMO, project_of

    models: dict[str, type[MethodConfig]] = {"self-train": SelfTrainConfig, "study": StudyConfig}
    model = models.get(flow, RealignConfig)
    if "config" in parameters:
        return str(parameters["config"].get("project", model.model_fields["project"].default))
    default = "study-quick" if flow == "study" else DEMO
    return project_of(model, parameters.get("config_file", default), parameters.get("overrides", []))


def open_flow_runs(client: SyncPrefectClient) -> list[tuple[str, FlowRun]]:
    """Return flow and run of all runs without a terminal state; runs that a schedule starts later are left out."""
    from datetime import UTC, datetime, timedelta

    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import TERMINAL_STATES, StateType
    from prefect.client.schemas.sorting import FlowRunSort

    from flows.running.gpu_slots import FLOWS

    states = FlowRunFilterState(type=FlowRunFilterStateType(any_=[s for s in StateType if s not in TERMINAL_STATES]))
    soon = datetime.now(UTC) + timedelta(seconds=QUEUE_SECONDS)
    found: list[tuple[str, FlowRun]] = []
    for flow in FLOWS:
        offset, page = 0, None
        while page is None or page:
            page = client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
                flow_run_filter=FlowRunFilter(state=states),
                sort=FlowRunSort.START_TIME_ASC,
                limit=100,
                offset=offset,
            )
            offset += len(page)
            found += [(flow, run) for run in page if not (run.state and run.state.is_scheduled() and _start(run) > soon)]
    return found


def _start(run: FlowRun) -> Any:
    return run.next_scheduled_start_time or run.expected_start_time


# ---------------------------------------------------------------------------------------------------------- reachability


def reach(store: Store, folders: Mapping[str, Folder], roots: Iterable[Root]) -> dict[str, str]:
    """Return ``{place: why}`` of all reachable places; the reason is that of the first root."""
    roots, kept = list(roots), dict[str, str]()
    for inputs in (True, False):
        for root in roots:
            todo = [root.place] if root.inputs is inputs else []
            while todo:
                place = todo.pop()
                if place in kept or place not in folders:
                    continue
                kept[place] = root.why
                if inputs:
                    todo += references(store, place)
    return kept


def references(store: Store, place: str) -> list[str]:
    """Return the places that a stage reads or was computed from."""
    result = store.read_json(f"{place}/{RESULT}")
    if result is None:
        return list(_references(store.read_json(f"{place}/{SPEC}")))
    found = [*_references(result.get("spec")), *_references(result.get("inputs"))]
    stage = STAGES.get(result["stage"])
    if stage is not None:
        found += _references([result["facts"].get(name) for name in stage.keeps])
    return found


def _references(value: Any) -> Iterator[str]:
    """Yield the places of all ``{stage, digest}`` in a JSON value."""
    if isinstance(value, dict):
        if value.keys() == {"stage", "digest"}:
            yield f"{value['stage']}/{value['digest']}"
        else:
            for inner in value.values():
                yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def row_caches_of(store: Store, kept: Iterable[str]) -> set[str] | None:
    """Return the places of the row caches that kept stages would read; None if one cannot be determined."""
    found = set()
    for place in kept:
        stage, digest = place.split("/")
        cache = STAGES[stage].row_cache if stage in STAGES else None
        if cache is None:
            continue
        spec = (store.read_json(f"{place}/{RESULT}") or {}).get("spec") or store.read_json(f"{place}/{SPEC}")
        if spec is None:
            continue
        try:
            found.add(f"{cache.folder}/{cache.name(spec, digest)}")
        except ValueError:  # of another version of the code, whose caches this one does not read
            return None
    return found
