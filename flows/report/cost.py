"""Cost of a run: wall time, and the CPU and GPU hours that its stages reserved.

A stage reserves ``execution.<stage>.workers`` times the CPUs and GPUs of a worker for as long as it computes. Cached stages count in
``whole``, with their hours when they were computed: the cost of the run in an empty store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.run_record import RunRecord
from infra.store.store import SPEC, Store
from tasks.runtime.descriptor import StageResult

HOUR = 3600.0


@dataclass(frozen=True)
class Hours:
    """CPU and GPU hours, of the attempts that finished."""

    cpu: float = 0.0
    gpu: float = 0.0

    def __add__(self, other: Hours) -> Hours:
        return Hours(self.cpu + other.cpu, self.gpu + other.gpu)


@dataclass(frozen=True)
class Cost:
    """Cost of a run.

    Attributes:
        now: of the stages that this run computed.
        whole: of all its stages, cached ones too.
        wall_seconds: None while it runs.
        memory: largest peak of one process of its stages, bytes; None where no stage has measured it.
    """

    now: Hours
    whole: Hours
    wall_seconds: float | None
    memory: int | None


def cost_of(store: Store, run: RunRecord, results: Mapping[str, StageResult[Any]]) -> Cost:
    """Add up the stages of a run.

    Args:
        results: by label, of the stages that have one.
    """
    by_label = {label: _hours(store, result) for label, result in results.items()}
    ran = {entry.label for entry in run.stages if entry.state == "ran"}
    once = {results[label].digest: label for label in results}  # two labels of a run may be one stage
    return Cost(
        now=sum((hours for label, hours in by_label.items() if label in ran), Hours()),
        whole=sum((by_label[label] for label in once.values()), Hours()),
        wall_seconds=run.finished - run.started if run.finished else None,
        memory=max((result.memory for result in results.values() if result.memory is not None), default=None),
    )


def _hours(store: Store, result: StageResult[Any]) -> Hours:
    spec = store.read_json(f"{result.stage}/{result.digest}/{SPEC}") or {}
    execution = spec.get("execution") or {}
    workers = max(1, execution.get("workers", 1))
    time = result.seconds / HOUR
    return Hours(time * workers * execution.get("cpus_per_worker", 1.0), time * workers * execution.get("gpus_per_worker", 0.0))
