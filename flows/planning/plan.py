"""The plan: every stage of a realignment with its digest, whether it runs, and why, before anything runs.

Specs point at their inputs by digest, so the whole chain is known from the configuration and the fingerprints of the
input files alone. "Why" compares each spec with the one of the project's last successful run (``projects/<project>/latest.json``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from dora_core.objectives.settings import ObjectiveConfig
from flows.config.models import RealignConfig, SelfTrainConfig
from flows.planning.rounds import add_rounds
from flows.planning.specs import Chain, pinned
from infra.settings import Settings
from infra.store.store import SPEC, Store
from tasks.runtime.stage import StageRef, StageSpec
from tasks.stages import drift
from tasks.stages.drift import Previous

Champions = Callable[[Callable[[str], None]], list[StageRef]]
Until = Literal["calibrate", "align", "evaluate", "promote"]
TWIN = "align (erm twin)"
MAX_CHANGES = 3

# Where a spec's field has another name than the configuration's key.
_CONFIG_KEYS = {
    "model": "policy",
    "aggregate": "calibration.aggregate",
    "golden_sources": "data.golden_sources",
    "model_name": "promotion.model_name",
    "mode": "promotion.mode",
}


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan.

    Attributes:
        label: unique within the plan; the stage's name unless it runs twice.
        reason: ``"cached: …"`` or ``"runs: …"``, for people.
        seconds: what the stage took in the run it is compared with, or an estimate; None = unknown.
        nothing_heavy: run it in the flow's process although it is a job: its result takes a moment.
        round: the self-training round it belongs to; None outside self-training.
    """

    label: str
    spec: StageSpec
    cached: bool
    reason: str
    seconds: float | None
    nothing_heavy: bool = False
    round: int | None = None

    @property
    def is_local(self) -> bool:
        """Runs in the flow's process."""
        return self.nothing_heavy or self.spec.placement == "local"

    @property
    def is_small(self) -> bool:
        """A job without workers of its own and on CPU, so that it may share one with others."""
        return not self.is_local and self.spec.execution.workers == 0 and self.spec.execution.gpus_per_worker == 0

    @cached_property
    def digest(self) -> str:
        return self.spec.digest()

    @property
    def stage(self) -> str:
        return self.spec.stage

    def to_json(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "stage": self.stage,
            "round": self.round,
            "digest": self.digest,
            "cached": self.cached,
            "reason": self.reason,
            "seconds_before": self.seconds,
        }


@dataclass(frozen=True)
class Plan:
    """Stages in the order they run.

    Attributes:
        inputs: ``{URI: digest}`` of the files that are read.
        records: number of records, None while it is not known.
        notes: what could not be planned as configured.
        not_needed: on-demand stages without a result, left out because every stage that reads them is cached.
    """

    project: str
    stages: tuple[PlannedStage, ...]
    inputs: dict[str, str]
    records: int | None = None
    notes: tuple[str, ...] = ()
    not_needed: tuple[PlannedStage, ...] = ()

    @property
    def to_run(self) -> list[PlannedStage]:
        return [stage for stage in self.stages if not stage.cached]

    @property
    def needs_ray(self) -> bool:
        return any(not stage.is_local for stage in self.to_run)

    def neighbours(self, stage: PlannedStage) -> list[PlannedStage]:
        """The small stages that run directly before and after a small ``stage``, and itself: they may share one job."""
        to_run = self.to_run
        first = last = to_run.index(stage)
        while first > 0 and to_run[first - 1].is_small:
            first -= 1
        while last + 1 < len(to_run) and to_run[last + 1].is_small:
            last += 1
        return to_run[first : last + 1]

    def checked(self, store: Store) -> Plan:
        """With what has gone since as stages that run: until a run's manifest is there, `dora gc` does not know of it."""
        stages = [
            replace(s, cached=False, reason="runs: its result has just been deleted") if s.cached and not s.spec.is_done(store) else s
            for s in self.stages
        ]
        needed, not_needed = _on_demand([*stages, *self.not_needed])
        order = [stage for stage in needed if stage not in self.not_needed]
        for stage in self.not_needed:
            if stage in needed:  # a stage that reads it has to run again
                order.insert(next(place for place, other in enumerate(order) if stage.digest in _reads(other)), stage)
        return replace(self, stages=tuple(order), not_needed=not_needed)

    def upstream(self, stage: PlannedStage) -> list[str]:
        """Labels of the stages whose output ``stage`` reads."""
        return [other.label for other in self.stages if other.digest in _reads(stage)]

    def to_json(self) -> dict[str, Any]:
        known = [s.seconds for s in self.to_run]
        return {
            "project": self.project,
            "records": self.records,
            "stages": [stage.to_json() for stage in self.stages],
            "to_run": len(self.to_run),
            "estimated_seconds": None if None in known else sum(s for s in known if s is not None),
        }


def _reads(stage: PlannedStage) -> set[str]:
    return {ref.digest for ref in stage.spec.predecessors().values()}


def _on_demand(stages: Sequence[PlannedStage]) -> tuple[tuple[PlannedStage, ...], tuple[PlannedStage, ...]]:
    """The stages of a plan, and the on-demand ones without a result that no running stage reads."""
    read = {digest for stage in stages if not stage.cached for digest in _reads(stage)}
    not_needed = tuple(s for s in stages if s.spec.on_demand and not s.cached and s.digest not in read)
    return tuple(s for s in stages if s not in not_needed), not_needed


def build_plan(config: RealignConfig, store: Store, *, until: Until = "promote", champions: Champions = lambda note: []) -> Plan:
    """Specs of all stages, compared with the store and with the project's last run. Computes nothing, writes nothing.

    Args:
        until: the last stage wanted.
        champions: gives the registry's champion and the one before it (``flows/planning/champion.py``), and notes what is missing; asked
        only if
            the project has promoted a model before.

    Raises:
        DataError: an input file is missing or its columns cannot be understood.
    """
    latest = read_latest(store, config.project)
    notes: list[str] = []
    chain = _specs(config, until, _previous(latest, store), champions(notes.append) if "promote" in latest else [])
    specs, labels = chain.specs, {spec.digest(): label for label, spec in chain.specs.items()}
    compared = [_compare(label, spec, chain.rounds[label], latest.get(label), labels, store) for label, spec in specs.items()]
    stages, not_needed = _on_demand(compared)
    ingest = store.read_result("ingest", stages[0].digest) if stages[0].cached else None
    if ingest is None:
        _check_inputs(specs["ingest"])
    records = None if ingest is None else sum(ingest["facts"]["records"].values())
    return Plan(config.project, stages, specs["ingest"].fingerprints, records, tuple(notes), not_needed)


def read_latest(store: Store, project: str) -> dict[str, dict[str, Any]]:
    """``{label: {digest, payload, run_id}}`` of the last successful run of each stage; empty for a new project."""
    return (store.read_json(f"projects/{project}/latest.json") or {}).get("plan", {})


def write_latest(store: Store, plan: Plan, run_id: str) -> None:
    """Remember a finished plan; stages it did not reach keep what was known about them."""
    done = {s.label: {"digest": s.digest, "payload": s.spec.payload(), "run_id": run_id} for s in plan.stages}
    store.write_json(f"projects/{plan.project}/latest.json", {"run_id": run_id, "plan": read_latest(store, plan.project) | done})


def _specs(config: RealignConfig, until: Until, previous: Previous | None, champions: list[StageRef]) -> Chain:
    from dora_core.data.fingerprints import FingerprintMemory
    from dora_core.data.inputs import fingerprint_sources

    chain = Chain(pinned(config), fingerprint_sources(config.data, FingerprintMemory(Settings().fingerprints)))
    calibration = chain.calibrate(chain.drift(previous)) if config.needs_calibration or until == "calibrate" else None
    if until == "calibrate":
        return chain
    start = chain.start()
    reference = chain.reference(start)
    policy = chain.align(start, reference, calibration)
    if until == "align":
        return chain
    if isinstance(config, SelfTrainConfig):
        evaluation, policy = add_rounds(chain, start, reference, policy, champions)
        chain.round = None  # a promotion is the run's, not a round's
    else:
        twin: StageRef | None = None
        if config.evaluate.erm_twin and config.align.objective.name != "erm":
            twin = chain.align(start, reference, None, TWIN, config.align.model_copy(update={"objective": ObjectiveConfig(name="erm")}))
        evaluation = chain.evaluate(start, reference, policy, twin, chain.compare(policy, start, champions))
    if until == "promote":
        chain.promote(evaluation, policy)
    return chain


def _previous(latest: dict[str, dict[str, Any]], store: Store) -> Previous | None:
    """What the last run knew about its data; None where its classifiers are gone."""
    refs = {
        stage: StageRef(stage=stage, digest=latest[stage]["digest"])
        for stage in ("ingest", "classify", "calibrate")
        if stage in latest and store.is_done(stage, latest[stage]["digest"])
    }
    if not {"ingest", "classify"} <= refs.keys():
        return None
    return Previous(records=refs["ingest"], classify=refs["classify"], calibrate=refs.get("calibrate"))


def _check_inputs(spec: Any) -> None:
    """Open every input and resolve its columns, so that a plan never promises what ingest would refuse at its first row."""
    from dora_core.data.inputs import inputs_of, open_input

    for item in inputs_of(spec.data):
        for _ in open_input(item, spec.fingerprints):
            pass


# ------------------------------------------------------------------------------------------------------------- reasons


def _compare(
    label: str, spec: StageSpec, round: int | None, before: dict[str, Any] | None, labels: dict[str, str], store: Store
) -> PlannedStage:
    digest = spec.digest()
    cached = spec.is_done(store)
    result = store.read_result(spec.stage, before["digest"] if before else digest)
    seconds = result["seconds"] if result else None
    if cached:
        known = before is not None and before["digest"] == digest
        reason = (
            f"cached: same inputs and settings as {before['run_id']}"
            if known
            else "cached: computed before from the same inputs and settings"
        )
    elif store.is_done(spec.stage, digest):
        reason = "runs: its result waits for a decision"
    elif before is not None and before["digest"] == digest:
        reason = "runs: its result was deleted or damaged"
    elif store.read_json(f"{spec.stage}/{digest}/{SPEC}") is not None:
        reason = "runs: an earlier attempt did not finish; what it completed is kept"
    elif before is None:
        reason = "runs: first time"
    else:
        reason = f"runs: {_why(before['payload'], spec, labels)}"
    at_once = isinstance(spec, drift.Spec) and spec.previous is None  # nothing to compare with: not worth a job
    return PlannedStage(label, spec, cached, reason, seconds, nothing_heavy=at_once, round=round)


def _why(old: dict[str, Any], spec: StageSpec, labels: dict[str, str]) -> str:
    """``"align.objective.lambda auto → 2.0; calibrate changed"``."""
    new = spec.payload()
    inputs = spec.inputs()
    before = {ref["digest"] for name in inputs for ref in _refs(old.get(name.partition(".")[0]))}
    changed_inputs = list(dict.fromkeys(labels[ref.digest] for ref in inputs.values() if ref.digest not in before))
    dropped = [
        name
        for name in old.keys() & new.keys()
        if new[name] is None and isinstance(old[name], dict) and set(old[name]) == {"stage", "digest"}
    ]
    parts = [f"no {name} any more" for name in sorted(dropped)]
    skip = {name.partition(".")[0] for name in inputs} | {*dropped}
    parts += _differences({k: v for k, v in old.items() if k not in skip}, {k: v for k, v in new.items() if k not in skip})
    if changed_inputs:
        parts.append(f"{', '.join(changed_inputs)} changed")
    return "; ".join(parts[:MAX_CHANGES]) + (f"; and {len(parts) - MAX_CHANGES} more changes" if len(parts) > MAX_CHANGES else "")


def _refs(value: Any) -> list[dict[str, str]]:
    """The stages that a field of a payload names: one, or a list of them."""
    return [ref for ref in (value if isinstance(value, list) else [value]) if isinstance(ref, dict) and set(ref) == {"stage", "digest"}]


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(k for k in old if k not in new)]:
            if old.get(key) == new.get(key):
                continue
            if path == "fingerprints":
                state = "is new" if key not in old else "is gone" if key not in new else "has new content"
                yield f"{key.rsplit('/', 1)[-1]} {state}"
            else:
                yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else _CONFIG_KEYS.get(key, key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            if a != b:
                yield from _differences(a, b, f"{path}.{index}")
    elif path == "version":
        yield f"the stage's code has version {new}, was {old}"
    else:
        yield f"{path} {_short(old)} → {_short(new)}"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
