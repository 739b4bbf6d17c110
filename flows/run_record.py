"""The manifest of a run, ``runs/<run_id>/run.json``: its stages and their states, for readers in other processes.

Read by the command line, reports, ``dora reap`` and ``dora gc``; written by ``flows/running/manifest.py``. A new field needs a
default, so that manifests of earlier releases stay readable. Keys of later releases are kept when this one rewrites a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from dora_core.strict_model import StrictModel
from infra.processes import RecordedProcess
from infra.store.json_files import parsed
from infra.store.store import Store

RunStatus = Literal["running", "waiting", "completed", "failed", "stopped", "cancelled"]
"""``waiting``: for a person's decision; ``stopped``: by a guard rail; ``cancelled``: by a person, or its process was killed."""
UNCHANGED = "unchanged"
"""Decision of a run whose promotion an earlier run had decided about, from the same evaluation of the same policy."""
StageState = Literal["pending", "running", "ran", "cached", "failed"]


class Record(StrictModel):
    """Base of the parts of a manifest: frozen; unknown keys are kept."""

    model_config = ConfigDict(extra="allow")


class StageRecord(Record):
    """One stage of a run.

    Attributes:
        label: unique within the run; the stage's name unless it runs more than once.
        round: the self-training round it belongs to; None outside self-training.
        reason: ``"cached: …"`` or ``"runs: …"``.
        seconds: how long it took; None until it has ended.
        submission_id: of its Ray job.
        notes: warnings of its result, one sentence each.
    """

    stage: str
    label: str
    round: int | None = None
    digest: str
    reason: str = ""
    state: StageState = "pending"
    seconds: float | None = None
    mlflow_run_id: str | None = None
    submission_id: str | None = None
    notes: list[str] = Field(default_factory=list)

    @field_validator("digest", mode="before")
    @classmethod
    def _known(cls, digest: str | None) -> str:
        return digest or ""  # null in manifests of the first release: a stage that was not planned yet

    @property
    def place(self) -> str:
        """Its folder in the store: ``"align/<digest>"``."""
        return f"{self.stage}/{self.digest}"

    @property
    def is_finished(self) -> bool:
        return self.state in ("ran", "cached")


class ErrorRecord(Record):
    """Error that ended a run, and the next step."""

    message: str
    hint: str = ""


class Links(Record):
    """Pages of a run in the other systems; None if there is no such page."""

    prefect: str | None = None
    mlflow: str | None = None
    ray: str | None = None


class ProcessRecord(Record):
    """The process that runs a run, see :class:`infra.processes.RecordedProcess`."""

    host: str
    pid: int
    created: float
    boot: str = ""
    since_boot: float = 0.0

    @classmethod
    def of(cls, process: RecordedProcess, host: str) -> ProcessRecord:
        return cls(host=host, pid=process.pid, created=process.created, boot=process.boot, since_boot=process.since_boot)

    def recorded(self) -> RecordedProcess:
        return RecordedProcess(name="flow", pid=self.pid, created=self.created, boot=self.boot, since_boot=self.since_boot)


class RunRecord(Record):
    """A run's manifest.

    Attributes:
        flow: ``realign``, ``calibrate``, ``self-train`` or ``study``; empty in manifests of the first release, which had one flow.
        name: of its flow run.
        config: the configuration as JSON.
        flow_run_id: Prefect's id; None where there was none.
        process: None in manifests of earlier releases.
        started, finished: epoch seconds.
        waited: seconds of it that it waited for a person.
        command: what starts the same run again; empty for a flow run of a worker, and in manifests of earlier releases.
        decision: ``promoted``, ``challenger``, ``undecided``, ``refused``, or :data:`UNCHANGED`; None before ``promote`` has run.
        promotion: facts of ``promote`` as this run saw them: a later run may decide about the same digest again.
        remark: why nothing was decided.
        decided_by: the person who decided; None where the gate did.
        deadline: epoch seconds until which a question waits for an answer.
        tracker_run: local id of the MLflow run, which a run continued after a decision opens again.
    """

    version: int = 1
    run_id: str
    flow: str = ""
    name: str = ""
    project: str
    command: str = ""
    config: dict[str, Any] = Field(default_factory=dict)
    flow_run_id: str | None = None
    process: ProcessRecord | None = None
    started: float
    finished: float | None = None
    waited: float = 0.0
    status: RunStatus
    error: ErrorRecord | None = None
    decision: str | None = None
    promotion: dict[str, Any] | None = None
    remark: str | None = None
    decided_by: str | None = None
    deadline: float | None = None
    tracker_run: str | None = None
    links: Links = Field(default_factory=Links)
    stages: list[StageRecord]

    def stage(self, label: str) -> StageRecord:
        return next(stage for stage in self.stages if stage.label == label)

    @property
    def seconds(self) -> float:
        """How long it took, without the time that it waited for a person; 0 while it runs."""
        return max(0.0, (self.finished or self.started) - self.started - self.waited)  # the clock may have been set back meanwhile

    @property
    def ran(self) -> int:
        """Number of stages that were computed in this run."""
        return sum(stage.state == "ran" for stage in self.stages)

    @property
    def places(self) -> list[str]:
        """Store folders of all its stages."""
        return [stage.place for stage in self.stages]

    @property
    def submissions(self) -> set[str]:
        """Ray submissions of its stages."""
        return {stage.submission_id for stage in self.stages if stage.submission_id}

    @property
    def notes(self) -> list[str]:
        """``"calibrate: no source can be told from golden: …"``: the stages' warnings, each with its stage."""
        return [f"{stage.label}: {note}" for stage in self.stages for note in stage.notes]


@dataclass(frozen=True)
class EndedRun:
    """A run as its flow returns it: its manifest, and the warnings of the process that ran it."""

    record: RunRecord
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return self.record.model_dump(mode="json", exclude={"version"}) | {"warnings": self.warnings}


def read_record(store: Store, run_id: str) -> RunRecord | None:
    """Return a run's manifest; None if it is missing or partially written.

    Raises:
        StoreError: it is one of a later release that this one cannot read.
    """
    content = store.read_json(_file(run_id))
    return None if content is None else parsed(RunRecord, content, f"{store.uri}/{_file(run_id)}")


def read_records(store: Store) -> Iterator[RunRecord]:
    """Yield the manifests of all runs; those of a project newest first."""
    for run_id in reversed(store.list("runs")):
        record = read_record(store, run_id)
        if record is not None:
            yield record


def write_record(store: Store, record: RunRecord) -> None:
    store.write_json(_file(record.run_id), record.model_dump(mode="json"))


def _file(run_id: str) -> str:
    return f"runs/{run_id}/run.json"
