"""Descriptor of a stage: the end of its file, and its interface to all other modules.

The registry (``tasks/stages/registry.py``) lists the descriptors; the command line's headlines, the parent run's metrics, events,
garbage collection, report sections and the entry point iterate over it and name no stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal

from infra.store.json_files import StoredResult, parsed
from infra.store.store import RESULT, Store
from tasks.runtime.facts import AnyFacts, F, Facts
from tasks.runtime.spec import StageRef, StageSpec

if TYPE_CHECKING:
    from dora_core.evaluation.metrics import Interval
    from tasks.runtime.stage import Run


@dataclass(frozen=True)
class StageResult(Generic[F]):
    """A stage's ``result.json``.

    Attributes:
        payload: the spec as its digest covers it.
        rows: rows written.
        metrics: finite numbers by name.
        seconds: duration of ``run``.
        memory: peak of one of its processes, bytes; None where none was measured.
    """

    stage: str
    digest: str
    payload: dict[str, Any]
    inputs: dict[str, StageRef]
    rows: int
    metrics: dict[str, float]
    facts: F
    seconds: float
    memory: int | None = None

    @classmethod
    def parse(cls, content: StoredResult, facts: type[F]) -> StageResult[F]:
        return cls(
            stage=content["stage"],
            digest=content["digest"],
            payload=content["spec"],
            inputs={name: StageRef.model_validate(ref) for name, ref in content["inputs"].items()},
            rows=content["rows"],
            metrics=content["metrics"],
            facts=parsed(facts, content["facts"], f"{content['stage']}/{content['digest']}/{RESULT}"),
            seconds=content["seconds"],
            memory=content.get("memory"),
        )


def read_result(store: Store, ref: StageRef, facts: type[F]) -> StageResult[F] | None:
    """Read a stage's result with typed facts; None without a result."""
    content = store.read_result(ref.stage, ref.digest)
    return None if content is None else StageResult.parse(content, facts)


@dataclass(frozen=True)
class Event:
    """Event of a finished stage, sent to Prefect as ``dora.<name>``, for automations and webhooks.

    Attributes:
        message: one sentence, the first of a notice.
        metrics: numbers that go with it.
        stops: it ends the run; the message then begins with the stage's label.
    """

    name: str
    message: str
    metrics: dict[str, float]
    stops: bool = False


@dataclass(frozen=True)
class RowCache:
    """Values per row that later runs with the same model read instead of computing them (``tasks/runtime/score_cache.py``).

    Attributes:
        folder: of the store; each cache is a folder in it.
        name: the cache's name, from the stage's spec as JSON and the stage's digest. Raises ValueError for a spec of another version.
    """

    folder: str
    name: Callable[[dict[str, Any], str], str]


def _rows(result: StageResult[Any]) -> str:
    return f"{result.rows} rows"


@dataclass(frozen=True)
class Stage:
    """A stage's descriptor.

    Attributes:
        run: computes the output.
        facts: model of its facts.
        headline: the main number, as a short text.
        tracked: beginnings of the names of its metrics that also go to the MLflow run of the whole run, or of its round.
        intervals: intervals of metrics, by the metric's name; of a tracked one ``_low`` and ``_high`` go with it.
        event: the event of a stage that has run; None: no event.
        keeps: names of facts that refer to stages which the output needs although its spec does not name them; garbage collection
            reads them, as JSON, for results of any release.
        row_cache: kept by garbage collection as long as the stage is; None: there is none.
        section: place in the report: ``stage`` in a separate section, with the template ``flows/report/<name>.html``; ``training``
            among the trainings; None nowhere.
        unplanned: sentence of the report for a run without this stage; ``{objective}`` stands for the name of its objective.
    """

    spec: type[StageSpec]
    run: Run
    facts: type[Facts] = AnyFacts
    headline: Callable[[StageResult[Any]], str] = _rows
    tracked: tuple[str, ...] = ()
    intervals: Callable[[StageResult[Any]], dict[str, Interval]] = lambda result: {}
    event: Callable[[StageResult[Any], Store], Event | None] = lambda result, store: None
    keeps: tuple[str, ...] = ()
    row_cache: RowCache | None = None
    section: Literal["stage", "training"] | None = None
    unplanned: str = "Not part of this run."

    @property
    def name(self) -> str:
        return self.spec.stage

    def parse(self, content: StoredResult) -> StageResult[Any]:
        """Parse the content of a ``result.json`` of this stage."""
        return StageResult.parse(content, self.facts)


STAGES: dict[str, Stage] = {}
"""Every stage by name, in the order of the pipeline. Filled by ``tasks/stages/registry.py``, which names them."""
