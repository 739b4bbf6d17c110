"""Outbox of MLflow updates: each operation is appended to a file, sent later, and acknowledged once it has arrived.

Delivery is at least once, so every operation is idempotent. One outbox is two things beside each other: ``<name>.jsonl`` (lines
``{"seq", "op"}`` and ``{"ack", …facts}``) and a folder ``<name>/`` with the files that operations refer to. Its process holds an exclusive
lock for as long as it lives; a later process adopts only the outboxes of finished or killed ones.

MLflow's content could instead be derived, at the time of sending, from the run's manifest, the journal and ``result.json``. Reasons for an
outbox:

- A failed or cancelled attempt has no result, and the manifest keeps a stage's last state only. Start, end and error of the attempts
  before it are recorded nowhere else.
- ``result.json`` may be replaced under the same digest: a promotion runs again after its approval, a damaged stage is computed again.
  The run that ended earlier would then show the facts of a later one. A result is therefore copied, and its figures with it: they are drawn
  in ``flows/report``, by the version of the code that computed them, and ``dora reap`` or a run of another project sends them.
- MLflow does not enforce unique tags: two machines that derive the same runs from one shared store would create them twice. The lock of an
  outbox leaves one sender.

Metrics are not copied: a :class:`Curves` names one part of a stage's journal, which is immutable, and the part is read when it is sent.
``dora gc`` keeps the stages whose journals wait here (:func:`waiting_places`).

Left out: fsync. An outbox survives the death of its process, but not the loss of its machine. A stage folder that is deleted by hand, or
by ``dora gc`` on another machine that shares the store, takes curves that still wait with it; each lost part is a warning. (``dora gc``
keeps all runs of the last week by default.)
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from dora_core.strict_model import StrictModel

Status = Literal["FINISHED", "FAILED", "KILLED"]
MetricRow = tuple[str, float, int, int]
"""Name, value, Unix time in milliseconds, step."""
TextRow = tuple[str, str]


class _Operation(StrictModel):
    """One update of an MLflow run.

    Attributes:
        run: local id of the run.
        time: Unix seconds.
    """

    run: str
    time: float


class Start(_Operation):
    """Create a run, or open it again; its tag with the local id makes this idempotent.

    Attributes:
        parent: local id of the run above it.
        project: name of the experiment.
        artifact_root: parent folder for the artifacts of a new experiment; None leaves it to the server.
    """

    kind: Literal["start"] = "start"
    name: str
    parent: str | None
    project: str
    artifact_root: str | None
    user: str


class Batch(_Operation):
    """Metrics, params and tags."""

    kind: Literal["batch"] = "batch"
    metrics: list[MetricRow] = Field(default_factory=list)
    params: list[TextRow] = Field(default_factory=list)
    tags: list[TextRow] = Field(default_factory=list)


class Curves(_Operation):
    """The metrics in one part of a stage's journal, which is read when they are sent.

    Attributes:
        store: URI of the store.
        part: the part's path below it.
        prefix: put before each metric's name, such as ``align/``.
    """

    kind: Literal["journal"] = "journal"
    store: str
    part: str
    prefix: str = ""


class Input(_Operation):
    """Dataset lineage.

    Attributes:
        columns: name → type; empty where they are not known.
        rows: None where they are not known.
    """

    kind: Literal["input"] = "input"
    name: str
    digest: str
    source: dict[str, str]
    type: str
    context: str
    columns: dict[str, str] = Field(default_factory=dict)
    rows: int | None = None


class Artifact(_Operation):
    """Upload a file.

    Attributes:
        file: its path on this machine.
        folder: artifact folder of the run; ``.`` is the top one.
    """

    kind: Literal["artifact"] = "artifact"
    file: str
    folder: str


class Finish(_Operation):
    """End a run."""

    kind: Literal["finish"] = "finish"
    status: Status


Operation = Start | Batch | Curves | Input | Artifact | Finish
_OPERATION: TypeAdapter[Operation] = TypeAdapter(Annotated[Operation, Field(discriminator="kind")])


@dataclass
class _Log:
    """The content of an outbox's file.

    Attributes:
        operations: by sequence number, acknowledged or not.
        unreadable: sequence numbers of operations that another release has written.
    """

    operations: dict[int, Operation] = field(default_factory=dict)
    unreadable: set[int] = field(default_factory=set)
    acknowledged: set[int] = field(default_factory=set)
    facts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, lines: Iterable[str]) -> _Log:
        log = cls()
        for text in lines:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue  # a partially written last line: its process was killed
            if "op" not in line:
                log.acknowledged.add(line["ack"])
                log.facts |= line.get("facts", {})
                continue
            try:
                log.operations[line["seq"]] = _OPERATION.validate_python(line["op"])
            except ValidationError:
                log.unreadable.add(line["seq"])
        return log

    @property
    def pending(self) -> list[tuple[int, Operation]]:
        return [(seq, operation) for seq, operation in self.operations.items() if seq not in self.acknowledged]


class Outbox:
    """An open, locked outbox. ``pending`` and ``facts`` are read back at its adoption.

    Attributes:
        pending: (sequence number, operation) not yet acknowledged, in the order they were appended.
        facts: merged content of the acknowledgements (``{local run id: server run id}``).
        operations: every operation ever appended to an adopted outbox, acknowledged or not.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.files = path, path.with_suffix("")
        self._file = path.open("a+", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises BlockingIOError while its process lives
        self._lock = threading.Lock()
        self._file.seek(0)
        log = _Log.read(self._file)
        log.operations = {seq: self._present(operation) for seq, operation in log.operations.items()}
        self.operations, self.facts, self.pending = log.operations, log.facts, log.pending
        self._open = {seq for seq, _ in log.pending} | (log.unreadable - log.acknowledged)
        self._count = max((*log.operations, *log.unreadable), default=0)
        self._blobs = len(list(self.files.iterdir())) if self.files.is_dir() else 0

    @classmethod
    def create(cls, folder: Path, key: str) -> Outbox:
        return cls(folder / f"{key}-{time.time_ns():020d}-{os.getpid()}.jsonl")

    @classmethod
    def adopt(cls, folder: Path, key: str) -> list[Outbox]:
        """Open the outboxes of the same key whose processes are gone, oldest first."""
        outboxes = []
        for path in sorted(folder.glob(f"{key}-*.jsonl")):
            try:
                outboxes.append(cls(path))
            except BlockingIOError:
                continue
        return outboxes

    def _present(self, operation: Operation) -> Operation:
        """Return an operation with the paths of today, if the home with this outbox has moved since it was written."""
        if isinstance(operation, Artifact) and not Path(operation.file).exists():
            kept = self.files.joinpath(*Path(operation.file).parts[-2:])
            return operation.model_copy(update={"file": str(kept)}) if kept.exists() else operation
        if isinstance(operation, Curves) and "://" not in operation.store and not Path(operation.store).is_dir():
            store = self.path.parent.parent / Path(operation.store).name
            return operation.model_copy(update={"store": str(store)}) if store.is_dir() else operation
        return operation

    def append(self, operation: Operation) -> int:
        """Write one operation and return its sequence number."""
        with self._lock:
            self._count += 1
            self._open.add(self._count)
            self._write({"seq": self._count, "op": operation.model_dump()})
            return self._count

    def acknowledge(self, seq: int, facts: dict[str, str] | None = None) -> None:
        """Mark an operation as arrived, or as refused: it is not sent again."""
        with self._lock:
            self._open.discard(seq)
            self._write({"ack": seq} | ({"facts": facts} if facts else {}))

    def keep(self, name: str, content: bytes) -> str:
        """Keep a file's bytes beside the log; returns its path, whose last part is the last part of ``name``."""
        with self._lock:
            self._blobs += 1
            target = self.files / f"{self._blobs:04d}" / Path(name).name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        return str(target)

    @property
    def open_operations(self) -> int:
        return len(self._open)

    def close(self, keep: bool = False) -> None:
        """Give up the lock; delete everything if nothing is left to send, unless updates in another outbox need its facts."""
        with self._lock:
            if not (self._open or keep):
                shutil.rmtree(self.files, ignore_errors=True)
                self.path.unlink(missing_ok=True)
            self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def waiting_places(folder: Path, store: str) -> set[str]:
    """Return the stage folders (``align/<digest>``) of a store whose journals wait to be sent, whichever process owns the outbox."""
    places = set()
    for path in folder.glob("*.jsonl"):
        with suppress(FileNotFoundError), path.open(encoding="utf-8") as lines:  # sent in this moment
            for _, operation in _Log.read(lines).pending:
                if isinstance(operation, Curves) and operation.store == store:
                    places.add(operation.part.partition("/journal/")[0])
    return places
