"""The plan of a run as data: stages in order, each with its digest, whether it runs, and the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from infra.store.store import Store
from tasks.runtime.spec import StageSpec


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan.

    Attributes:
        label: unique within the plan; the stage's name unless it runs twice.
        reason: ``"cached: …"`` or ``"runs: …"``, a text for users.
        seconds: duration in the last run, or an estimate; None = unknown.
        nothing_heavy: a job stage with almost nothing to compute, which runs in the flow's process instead.
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
        """Whether it runs in the flow's process."""
        return self.nothing_heavy or self.spec.placement == "local"

    @property
    def is_small(self) -> bool:
        """Whether it is a CPU job without Ray workers, which may share one job with other small stages."""
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
        notes: parts of the configuration that could not be planned, and where a run starts that was to continue from a champion.
        not_needed: on-demand stages without a result, left out because every stage that reads them is cached.
        model: facts about the policy, read from its files without weights; empty for tiny.
    """

    project: str
    stages: tuple[PlannedStage, ...]
    inputs: dict[str, str]
    records: int | None = None
    notes: tuple[str, ...] = ()
    not_needed: tuple[PlannedStage, ...] = ()
    model: tuple[str, ...] = ()

    @property
    def to_run(self) -> list[PlannedStage]:
        return [stage for stage in self.stages if not stage.cached]

    @property
    def needs_ray(self) -> bool:
        return any(not stage.is_local for stage in self.to_run)

    def neighbours(self, stage: PlannedStage) -> list[PlannedStage]:
        """Return the small stages that run directly before and after a small ``stage``, and itself: they may share one job."""
        to_run = self.to_run
        first = last = to_run.index(stage)
        while first > 0 and to_run[first - 1].is_small:
            first -= 1
        while last + 1 < len(to_run) and to_run[last + 1].is_small:
            last += 1
        return to_run[first : last + 1]

    def checked(self, store: Store) -> Plan:
        """Return the plan; stages whose result was deleted meanwhile run. `dora gc` reads the manifest and spares the others."""
        stages = [
            replace(s, cached=False, reason="runs: its result has just been deleted") if s.cached and not s.spec.is_done(store) else s
            for s in self.stages
        ]
        needed, not_needed = split_on_demand([*stages, *self.not_needed])
        order = [stage for stage in needed if stage not in self.not_needed]
        for stage in self.not_needed:
            if stage in needed:  # a stage that reads it has to run again
                order.insert(next(place for place, other in enumerate(order) if stage.digest in _reads(other)), stage)
        return replace(self, stages=tuple(order), not_needed=not_needed)

    def upstream(self, stage: PlannedStage) -> list[str]:
        """Return the labels of the stages whose output ``stage`` reads."""
        return [other.label for other in self.stages if other.digest in _reads(stage)]

    def direct(self, stage: PlannedStage) -> list[str]:
        """Return the labels of :meth:`upstream` without those that another one of them reads already: the edges that a graph needs."""
        above = {other.label: self._all_above(other) for other in self.stages if other.label in self.upstream(stage)}
        return [label for label in above if not any(label in reached for other, reached in above.items() if other != label)]

    def _all_above(self, stage: PlannedStage) -> set[str]:
        """Return the labels of all stages that ``stage`` depends on, over any number of steps."""
        by_label, found, left = {other.label: other for other in self.stages}, set[str](), self.upstream(stage)
        while left:
            label = left.pop()
            if label not in found:
                found.add(label)
                left += self.upstream(by_label[label])
        return found

    @property
    def estimated_seconds(self) -> float | None:
        """The time of the stages to run, as they took before; None where one has never run."""
        known = [s.seconds for s in self.to_run if s.seconds is not None]
        return sum(known) if len(known) == len(self.to_run) else None

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--dry-run --json`` prints."""
        return {
            "project": self.project,
            "records": self.records,
            "model": list(self.model),
            "stages": [stage.to_json() for stage in self.stages],
            "to_run": len(self.to_run),
            "estimated_seconds": self.estimated_seconds,
            "notes": list(self.notes),
        }


def _reads(stage: PlannedStage) -> set[str]:
    return {ref.digest for ref in stage.spec.predecessors().values()}


def split_on_demand(stages: Sequence[PlannedStage]) -> tuple[tuple[PlannedStage, ...], tuple[PlannedStage, ...]]:
    """Return the stages of a plan, and the on-demand ones without a result that no running stage reads."""
    read = {digest for stage in stages if not stage.cached for digest in _reads(stage)}
    not_needed = tuple(s for s in stages if s.spec.on_demand and not s.cached and s.digest not in read)
    return tuple(s for s in stages if s not in not_needed), not_needed
