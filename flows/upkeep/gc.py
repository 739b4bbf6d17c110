"""The flow ``gc`` and ``dora gc``: delete unreachable results from the store. A dry run unless `delete` is set.

Kept are the places that ``flows/upkeep/reachability.py`` finds: inputs of a registered model, of a run under way, or of the next run.
Deleted are all other results; leftovers of killed processes (abandoned stages, scratch folders of finished ones, temporary files);
manifests of runs that are not kept, unless they made a registered model; on a remote store also this machine's copies that no run under way
reads.

Safe while runs start. A deleted result can be computed again, but a run must not lose one that its plan counts as cached. So a run first
writes its manifest, then checks again that its plan's results are there (:meth:`flows.planning.planned_stage.Plan.checked`); and a folder
is first hidden, then the manifests are read again, then it is deleted or restored (``infra/store/deletion.py``). Whichever is first, the
other detects it.

Left out: files outside the store: reports (the lasting record of a run), the outbox (updates that MLflow has not received), logs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from dora_core.errors import ConfigError, DoraError
from flows.run_record import read_record
from flows.upkeep import reachability as needed
from flows.upkeep.reachability import GRACE_SECONDS, Folder, Root, Rules, Runs
from infra.prefect_api import connected
from infra.settings import Places, Settings, apply_environment
from infra.store.deletion import TRASH, check_listing, delete_file, discard, files_below
from infra.store.store import Store
from tasks.runtime.spec import DIGEST_PATTERN
from tasks.stages.registry import STAGES

ROW_CACHES = tuple(stage.row_cache.folder for stage in STAGES.values() if stage.row_cache)
OLDER_THAN, KEEP_RUNS = "7d", 3
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}

Progress = Callable[[str, int, int | None], None]
"""Progress callback: the operation, how much of it is done, and of how much."""


@dataclass
class Count:
    """Folders and bytes, in total and deleted."""

    folders: int = 0
    bytes: int = 0
    removed: int = 0
    removed_bytes: int = 0


@dataclass
class Collected:
    """Places that a collection has deleted, or would delete.

    Attributes:
        stages: by the store's folders.
        kept: ``{place: why}``; kept_bytes: the same places' sizes.
        removed: places; runs: ids of deleted manifests.
        leftovers: temporary files, and scratch folders of finished stages.
        cached_bytes: of copies on this machine of a remote store's files.
        problems: places that could not be deleted, and why; the next collection tries again.
    """

    store: str
    delete: bool
    stages: dict[str, Count] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    kept_bytes: dict[str, int] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    leftover_bytes: int = 0
    cached_bytes: int = 0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(count.bytes for count in self.stages.values())

    @property
    def freed_bytes(self) -> int:
        return sum(count.removed_bytes for count in self.stages.values()) + self.leftover_bytes

    def count(self, folders: dict[str, Folder], kept: dict[str, str]) -> None:
        """Record all folders of the store, and the reasons and sizes of those that stay."""
        self.kept, self.kept_bytes = kept, {place: folders[place].bytes for place in kept}
        for place, folder in folders.items():
            count = self.stages.setdefault(place.split("/")[0], Count())
            count.folders, count.bytes = count.folders + 1, count.bytes + folder.bytes

    def reasons(self) -> dict[str, tuple[int, int]]:
        """``{why: (folders, bytes)}``, the largest first."""
        found: dict[str, tuple[int, int]] = {}
        for place, why in self.kept.items():
            folders, size = found.get(why, (0, 0))
            found[why] = folders + 1, size + self.kept_bytes[place]
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))

    def summary(self) -> str:
        """Return the summary in one sentence."""
        freed = f"{shown(self.freed_bytes)} of {shown(self.bytes)} in {self.store}"
        parts = [f"{len(self.removed)} folders"] + [f"{len(self.runs)} runs"] * bool(self.runs)
        parts += [f"{len(self.leftovers)} leftovers"] * bool(self.leftovers)
        parts += [f"{shown(self.cached_bytes)} of this machine's copies"] * bool(self.cached_bytes)
        if not (self.removed or self.runs or self.leftovers or self.cached_bytes):
            return f"nothing to collect: all {shown(self.bytes)} in {self.store} are needed"
        what = ", ".join(parts)
        return f"freed {freed}: {what}" if self.delete else f"would free {freed}: {what}; `dora gc --delete` does it"

    def to_json(self) -> dict[str, Any]:
        return {
            "store": self.store,
            "delete": self.delete,
            "bytes": self.bytes,
            "freed_bytes": self.freed_bytes,
            "stages": {name: vars(count) for name, count in self.stages.items()},
            "kept": self.kept,
            "removed": self.removed,
            "runs": self.runs,
            "leftovers": self.leftovers,
            "cached_bytes": self.cached_bytes,
            "notes": self.notes,
            "problems": self.problems,
        }


@flow(name="gc", flow_run_name="gc", persist_result=False)
def gc(delete: bool = False, older_than: str = OLDER_THAN, keep_runs: int = KEEP_RUNS) -> State[Collected]:
    """Find, or delete, results in the store that no registered model, run under way or next run needs.

    Args:
        delete: Delete them; else only list them.
        older_than: Keep runs that ended and stages that were written within it: 90m, 12h, 7d.
        keep_runs: Keep as many completed runs of each project and kind, however old.
    """
    settings = Settings()
    seconds = parse_age(older_than)
    collected = collect(settings, apply_environment(settings), delete=delete, older_than=seconds, keep_runs=keep_runs)
    get_run_logger().info(collected.summary())
    for line in (*collected.notes, *collected.problems):
        get_run_logger().warning(line)
    ended = Failed if collected.problems else Completed
    return ended(message=collected.summary(), data=collected)


def parse_age(text: str) -> float:
    """Return the seconds of ``"90m"``, ``"12h"``, ``"7d"``.

    Raises:
        ConfigError: another form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if found is None:
        raise ConfigError(f"{text!r} is not a valid duration", hint=f"give a number and one of {', '.join(UNITS)}: 90m, 12h, 7d")
    return float(found[1]) * UNITS[found[2]]


def shown(size: float) -> str:
    """Return a size as text: ``"1.4 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def collect(
    settings: Settings,
    places: Places,
    *,
    delete: bool = False,
    older_than: float = UNITS["d"] * 7.0,
    keep_runs: int = KEEP_RUNS,
    unregistered: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Collected:
    """Delete, or only list, unreachable places; see the module docstring.

    Args:
        places: of ``settings``; without a Prefect server nothing can be queued.
        older_than: seconds.
        unregistered: continue although the registry has none of the models that runs of this store registered.

    Raises:
        ServiceError: MLflow or Prefect is away, so that the roots are not known. ConfigError: another store's registry. StoreError: the
            store's listing is out of date.
    """
    store = Store(settings.store_uri)
    collected, rules = Collected(store.uri, delete), Rules(older_than, keep_runs)
    if delete:
        check_listing(store)
    folders, trash = survey(store, progress)  # first, so that later results are never candidates
    with connected(places.prefect_api_url) if places.prefect_api_url else nullcontext() as client:
        queue = needed.open_flow_runs(client) if client else []
    runs = Runs.of(store, rules, (str(run.id) for _, run in queue))
    versions = list(needed.of_registry(places.mlflow_uri, store, folders, may_be_empty=unregistered))
    queued, collected.notes = needed.of_queue(queue, runs)
    collected.notes += abandoned(runs)
    runs.kept |= {run_id: why for run_id, why in queued.items() if run_id not in runs.live}
    under_way = list(runs.roots([*runs.live, *(run_id for run_id in queued if run_id not in runs.live)]))

    progress("finding results in use", 0, None)
    stages = {place: folder for place, folder in folders.items() if place.split("/")[0] not in ROW_CACHES}
    roots: list[Root] = [
        *under_way,
        *(root for root in versions if root.inputs),
        *needed.of_projects(store),
        *runs.roots(run_id for run_id in runs.kept if run_id not in runs.live),
        *needed.of_folders(stages, rules),
        *needed.of_outbox(settings.outbox, store),
        *(root for root in versions if not root.inputs),
        *needed.of_decisions(stages),
    ]
    kept = needed.reach(store, stages, roots)
    kept |= kept_row_caches(store, folders, kept, rules, GRACE_SECONDS if under_way else 0.0)
    models = {root.place for root in versions}
    gone = [run_id for run_id, run in runs.records.items() if run_id not in runs.kept and models.isdisjoint(run.places)]

    collected.count(folders, kept)
    live = needed.reach(store, stages, under_way)
    watch = Watch(store, runs)
    sweep = Sweep(store, collected, watch, delete, progress)
    sweep.folders({place: folder for place, folder in folders.items() if place not in kept})
    sweep.runs(gone)
    sweep.leftovers({place: folders[place] for place in kept}, live.keys(), rules, trash)
    if store.remote is not None:
        collected.cached_bytes = sweep_copies(Store(str(store.local_root)), live.keys(), rules, watch, delete, progress)
    return collected


def survey(store: Store, progress: Progress) -> tuple[dict[str, Folder], list[str]]:
    """Return ``{place: its files}`` of all stages and row caches, and the places that a killed collection was deleting. Other folders of
    a store are left alone."""
    folders, trash = dict[str, Folder](), set[str]()
    for stage in sorted({*STAGES, *ROW_CACHES, "runs"}):
        for file in files_below(store, stage):
            digest, _, name = file.name.partition("/")
            if out := re.match(f"(.*?{re.escape(TRASH)})/", file.name):  # a stage, its scratch folder, or a manifest
                trash.add(f"{stage}/{out[1]}")
            elif name and re.match(DIGEST_PATTERN, digest):
                folders.setdefault(f"{stage}/{digest}", Folder()).add(name, file.bytes, file.modified)
                progress("looking through the store", len(folders), None)
    return folders, sorted(trash)


def kept_row_caches(store: Store, folders: dict[str, Folder], kept: dict[str, str], rules: Rules, grace: float) -> dict[str, str]:
    """Return row caches that later runs read or that a run under way may be writing, with the reason."""
    wanted = needed.row_caches_of(store, kept)
    found = {}
    for place, folder in folders.items():
        if place.split("/")[0] not in ROW_CACHES:
            continue
        if wanted is None or place in wanted:
            found[place] = "values that are not computed again"
        elif rules.now - folder.modified < max(rules.older_than, grace):
            found[place] = "written lately"
    return found


def abandoned(runs: Runs) -> list[str]:
    """Return notes on runs with status "running" whose process is gone."""
    from flows.upkeep.reap import why_over

    live = [runs.records[run_id] for run_id in sorted(runs.live)]
    over = [run.run_id for run in live if run.status == "running" and why_over(run.process, None)]
    return [f"{', '.join(over)}: the process is gone, but the run was not ended; `dora reap` ends it, and frees its results"] * bool(over)


@dataclass
class Watch:
    """Runs that have begun since the roots were read, and the places they need."""

    store: Store
    runs: Runs
    _places: set[str] = field(default_factory=set)
    _known: set[str] = field(default_factory=set)

    def begun(self) -> set[str]:
        """Return the places of all stages of new runs."""
        for run_id in {*self.store.list("runs")} - self.runs.records.keys() - self._known:
            run = read_record(self.store, run_id)
            if run is not None:  # else it is about to be written
                self._known.add(run_id)
                self._places |= set(run.places)
        return self._places

    def is_unwanted(self, place: str) -> bool:
        """Whether no new run needs ``place``. A new run keeps all row caches: it may read one of a model it has yet to train."""
        begun = self.begun()
        return place not in begun and not (begun and place.split("/")[0] in ROW_CACHES)


@dataclass
class Sweep:
    """Deletion of places, or only their counts in a dry run."""

    store: Store
    collected: Collected
    watch: Watch
    delete: bool
    progress: Progress

    def folders(self, garbage: dict[str, Folder]) -> None:
        for number, (place, folder) in enumerate(garbage.items()):
            self.progress("deleting", number, len(garbage))
            if self._discard(place):
                self.collected.removed.append(place)
                count = self.collected.stages[place.split("/")[0]]
                count.removed, count.removed_bytes = count.removed + 1, count.removed_bytes + folder.bytes

    def runs(self, run_ids: Iterable[str]) -> None:
        self.collected.runs = [run_id for run_id in run_ids if self._discard(f"runs/{run_id}")]

    def leftovers(self, kept: dict[str, Folder], live: Iterable[str], rules: Rules, trash: list[str]) -> None:
        """Delete leftovers of killed processes in folders that stay."""
        old, live = rules.now - GRACE_SECONDS, set(live)
        for place, folder in kept.items():
            if folder.is_finished and folder.scratch and place not in live and folder.modified < old:
                self._leftover(f"{place}/scratch", folder.scratch, is_folder=True)
            for name, modified in folder.temporary:
                if modified < old and place not in live and not name.startswith("scratch/"):
                    self._leftover(f"{place}/{name}", 0)
        for where in ("runs", "projects"):
            for file in files_below(self.store, where):
                if file.name.endswith(".tmp") and file.modified < old:
                    self._leftover(f"{where}/{file.name}", file.bytes)
        for place in trash:
            self._leftover(place, 0, is_folder=True)

    def _leftover(self, relative: str, size: int, *, is_folder: bool = False) -> None:
        if self._discard(relative) if is_folder else self._delete_file(relative):
            self.collected.leftovers.append(relative)
            self.collected.leftover_bytes += size

    def _discard(self, place: str) -> bool:
        if not self.delete:
            return True
        try:
            return discard(self.store, place, lambda: self.watch.is_unwanted(place))
        except FileNotFoundError:  # deleted by another collection
            return False
        except (OSError, DoraError) as error:
            self.collected.problems.append(f"{place}: {error}")
            return False

    def _delete_file(self, relative: str) -> bool:
        try:
            if self.delete:
                delete_file(self.store, relative)
            return True
        except (OSError, DoraError) as error:
            self.collected.problems.append(f"{relative}: {error}")
            return False


def sweep_copies(cache: Store, live: Iterable[str], rules: Rules, watch: Watch, delete: bool, progress: Progress) -> int:
    """Delete this machine's copies of a remote store that no run under way reads; stages fetch them again. Returns bytes."""
    live, copies = set(live), Collected(cache.uri, delete)
    folders, trash = survey(cache, progress)
    old = {
        place: folder
        for place, folder in folders.items()
        if place not in live and rules.now - folder.modified > max(rules.older_than, GRACE_SECONDS)
    }
    copies.stages = {place.split("/")[0]: Count() for place in old}
    sweep = Sweep(cache, copies, watch, delete, progress)
    sweep.folders(old)
    sweep.leftovers({}, (), rules, trash)
    return copies.freed_bytes
