"""MLflow tracking that can neither kill nor stall a realignment.

One :class:`Tracker` serves one realignment: experiment per project, a parent run, nested stage runs. Every call appends an
operation to a :class:`~infra.tracking.spool.Spool` and returns (well under a millisecond, figures apart); one background thread sends them
in order with short time-outs, many small ones in one call. A server that is away or never answers, or another that has taken its port,
costs the caller nothing: what could not be sent stays in the spool and the next tracker of the same history sends it, run ids, time
stamps and all. Every operation is idempotent (runs carry their local id as a tag), so sending one twice changes nothing.

Run ids handed out here are local; :meth:`Tracker.mlflow_id` gives the server's once it is known. A run nobody finished ends as KILLED, by
:meth:`Tracker.close` or, after a kill -9, by the next tracker.

Left out: the fluent ``mlflow.*`` API (process-global state), and model files (``infra/tracking/model_registry.py`` registers them by URI).
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import threading
import time
import urllib.parse
import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infra.back_ends import without_credentials
from infra.tracking.mlflow_client import MlflowCalls, joined, milliseconds
from infra.tracking.mlflow_limits import ENTRIES, chunks, flatten, shorten
from infra.tracking.spool import Operation, Spool

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Status = Literal["FINISHED", "FAILED", "KILLED"]

UI_PAGES = "?workflowType=machine_learning"  # without it MLflow 3 opens its pages for agents
MAX_WARNINGS = 5


class Tracker:
    """See the module docstring. Methods never raise for a reason of MLflow's; :meth:`close` tells what was not sent."""

    def __init__(self, uri: str, project: str, spools: list[Spool], artifact_root: Path | None):
        self.uri, self.project = uri, project
        self._spool, self._artifact_root = spools[-1], artifact_root
        self._spools = spools
        self._queue: deque[tuple[Spool, int, Operation]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._open_runs: dict[str, None] = {}  # an ordered set
        self._calls = MlflowCalls(uri)
        self._refused: list[str] = []
        self._problem = ""
        for spool in spools:
            self._calls.ids |= spool.facts
            self._queue.extend((spool, seq, operation) for seq, operation in spool.pending)
        self._finish_abandoned_runs(spools[:-1])
        self._thread = threading.Thread(target=self._work, name="mlflow-tracking", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, uri: str, project: str, spool: Path, artifact_root: Path | None = None, history: str | None = None) -> Tracker:
        """Start tracking; what earlier trackers of the same history left in ``spool`` is sent first.

        Args:
            uri: ``sqlite:///path/mlflow.db`` (no server needed) or ``http(s)://host:port``.
            project: name of the experiment.
            spool: folder for operations on their way.
            artifact_root: where artifacts of a new experiment go, ``<artifact_root>/<project>``. Needed with SQLite; None leaves
                it to the server.
            history: a name for what holds the runs, where several addresses lead there. Default: the address.

        Raises:
            OSError: ``spool`` cannot be written.
        """
        key = hashlib.sha256((history or uri).encode()).hexdigest()[:8]  # not the address itself: it may hold a password
        return cls(uri, project, [*Spool.adopt(spool, key), Spool.create(spool, key)], artifact_root)

    def start_run(
        self,
        name: str,
        *,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        continues: str | None = None,
    ) -> str:
        """Begin a run, nested under ``parent`` (a local id) if given; returns its local id at once.

        Args:
            continues: local id of a run that another process began and finished: it is opened again.
        """
        run_id = continues or uuid.uuid4().hex
        self._open_runs[run_id] = None
        root = None if self._artifact_root is None else str(self._artifact_root.resolve())
        self._send_later("start", run_id, name=name, parent=parent, project=self.project, artifact_root=root, user=user_name())
        self._batch(run_id, tags=list((tags or {}).items()), params=list(flatten(params or {})))
        return run_id

    def replay(self, run_id: str, events: Iterable[dict[str, Any]]) -> None:
        """Journal events (``infra/store/journal.py``) become metrics with their own step and time; progress is not for MLflow."""
        self._batch(
            run_id,
            metrics=[
                (name, value, milliseconds(event["time"]), event["step"])
                for event in events
                if event["kind"] == "metrics"
                for name, value in event["values"].items()
            ],
        )

    def log_metrics(self, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
        """One value of each figure; others with other steps make a curve."""
        now = milliseconds(time.time())
        self._batch(run_id, metrics=[(name, float(value), now, step) for name, value in values.items()])

    def log_result(self, run_id: str, result: dict[str, Any], figures: Mapping[str, Figure]) -> None:
        """A stage's ``result.json``: its metrics, rows and seconds; the file itself; figures as PNG (MLflow's UI shows them inline)."""
        self.log_metrics(run_id, {"rows": result["rows"], "seconds": result["seconds"]} | result["metrics"])
        self._keep(run_id, "result.json", json.dumps(result, indent=1, sort_keys=True, default=str).encode())
        for name, figure in figures.items():
            try:
                self._keep(run_id, f"figures/{name}.png", _png(figure))
            except Exception as error:  # matplotlib may raise anything; a picture is not worth a run
                self._refused.append(f"figure {name}: {_headline(str(error))}")

    def log_input(self, run_id: str, name: str, uri: str, digest: str, context: str) -> None:
        """Dataset lineage: shows under "Datasets used" with its digest (36 of 64 digits fit; the source holds all)."""
        source = {"uri": without_credentials(uri), "digest": digest}
        scheme = urllib.parse.urlsplit(uri).scheme
        self._send_later("input", run_id, name=name, digest=digest, source=source, type=scheme or "local", context=context)

    def log_files(self, run_id: str, files: Mapping[str, Path]) -> None:
        """Small files as artifacts, by path inside the run; copied now, so later changes do not matter."""
        for name, path in files.items():
            try:
                content = path.read_bytes()
            except OSError as error:
                self._refused.append(f"artifact {name}: {error}")
            else:
                self._keep(run_id, name, content)

    def finish(self, run_id: str, status: Status, tags: Mapping[str, str] | None = None) -> None:
        """End a run explicitly: MLflow itself would say FINISHED after an uncaught exception."""
        self._open_runs.pop(run_id, None)
        self._batch(run_id, tags=list((tags or {}).items()))
        self._send_later("finish", run_id, status=status)

    def mlflow_id(self, run_id: str, wait_seconds: float = 0.0) -> str | None:
        """The server's id of a run, None while (or if, after ``wait_seconds``) the server has not created it."""
        with self._changed:
            self._changed.wait_for(lambda: run_id in self._calls.ids, timeout=wait_seconds)
            return self._calls.ids.get(run_id)

    def url(self, run_id: str) -> str | None:
        """The run's page, None with SQLite (no server) or while the run is not known there."""
        mlflow_id, experiment = self.mlflow_id(run_id), self._calls.experiments.get(self.project)
        if mlflow_id is None or experiment is None or not self.uri.startswith("http"):
            return None
        return f"{without_credentials(self.uri).rstrip('/')}/#/experiments/{experiment}/runs/{mlflow_id}{UI_PAGES}"

    def close(self, patience_seconds: float = 10.0, limit_seconds: float = 60.0) -> list[str]:
        """End unfinished runs as KILLED, send what is waiting, and return warnings for a reader (empty: all is in MLflow).

        Returns as soon as everything is sent, after one last failed attempt, after ``patience_seconds`` without progress,
        or after ``limit_seconds``. What is called after it has no effect.
        """
        for run_id in reversed(list(self._open_runs)):
            self.finish(run_id, "KILLED")
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        deadline, left = time.monotonic() + limit_seconds, -1
        while time.monotonic() < deadline and len(self._queue) != left:
            left, patience = len(self._queue), time.monotonic() + patience_seconds
            while self._thread.is_alive() and len(self._queue) == left and time.monotonic() < min(patience, deadline):
                self._thread.join(0.05)
            if not self._thread.is_alive():
                break
        warnings = [f"MLflow refused {line}" for line in dict.fromkeys(self._refused)]
        if len(warnings) > MAX_WARNINGS:
            warnings[MAX_WARNINGS:] = [f"… and {len(warnings) - MAX_WARNINGS} more"]
        waiting = sum(spool.open_operations for spool in self._spools)
        if waiting:
            reason = _headline(self._problem or "no answer yet")
            where = f"{without_credentials(self.uri)} wait in {self._spool.path.parent}"
            warnings.append(f"{waiting} MLflow updates for {where} ({reason}); the next run or `dora reap` sends them")
        return warnings

    # --------------------------------------------------------------------------------------------- appending (callers)

    def _send_later(self, kind: str, run_id: str, **fields: Any) -> None:
        operation: Operation = {"kind": kind, "run": run_id, "time": time.time()} | fields
        with self._changed:
            if self._closing:
                return
            try:
                self._queue.append((self._spool, self._spool.append(operation), operation))
            except OSError as error:  # disk full: tracking is what gives way
                self._refused.append(f"{kind}: the spool cannot be written: {error}")
            self._changed.notify_all()

    def _batch(self, run_id: str, **entries: list[tuple]) -> None:
        """Metrics, params or tags."""
        for kind, items in entries.items():
            for chunk in chunks(kind, items):
                self._send_later("batch", run_id, **{kind: chunk})

    def _keep(self, run_id: str, name: str, content: bytes) -> None:
        if self._closing:
            return
        try:
            file = self._spool.keep(name, content)
        except OSError as error:
            self._refused.append(f"artifact {name}: the spool cannot be written: {error}")
        else:
            self._send_later("artifact", run_id, file=file, folder=str(Path(name).parent))

    def _finish_abandoned_runs(self, spools: list[Spool]) -> None:
        """Runs whose tracker was killed: RUNNING for ever unless somebody says otherwise."""
        for spool in spools:
            started = {op["run"]: None for op in spool.operations.values() if op["kind"] == "start"}
            finished = {op["run"] for op in spool.operations.values() if op["kind"] == "finish"}
            for run_id in reversed([run for run in started if run not in finished]):
                self._batch(run_id, tags=[("dora.error", "its process is gone")])
                self._send_later("finish", run_id, status="KILLED")

    # -------------------------------------------------------------------------------------- sending (background thread)

    def _work(self) -> None:
        """Send in order; a failure is tried again after 1, 2, 4 … 30 s, and once more when closing."""
        delay, apart = 1.0, 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    break
                front = list(islice(self._queue, 1 if apart else ENTRIES))
            operation, count = joined(operation for _, _, operation in front)
            facts = None
            try:
                facts = self._calls.perform(operation)
            except Exception as error:  # a thread boundary: whatever MLflow raises ends here
                if not self._calls.is_refusal(operation, error):
                    self._problem = _problem(error)
                    with self._changed:
                        if self._closing:
                            break
                        self._changed.wait_for(lambda: self._closing, timeout=delay)
                    delay = min(2 * delay, 30.0)
                    continue
                if count > 1:  # one of them is to blame, not all
                    apart = count
                    continue
                self._refused.append(f"{operation['kind']}: {_headline(str(error))}")
            delay, apart = 1.0, max(0, apart - count)
            with suppress(OSError):  # not acknowledged: sent again by the next tracker, to no effect
                for spool, seq, _ in front[:count]:
                    spool.acknowledge(seq, facts)
            with self._changed:
                for _ in range(count):
                    self._queue.popleft()
                self._calls.ids |= facts or {}
                self._changed.notify_all()
        waits = any(spool.open_operations for spool in self._spools)
        for spool in self._spools:
            spool.close(keep=waits)  # the end of a run may wait in one, and the id that it needs be known in another


def _problem(error: Exception) -> str:
    """Why an operation did not arrive, with the remedy where we know it."""
    status = error.get_http_status_code() if hasattr(error, "get_http_status_code") else None
    if status in (401, 403):
        return f"it refuses us ({status}): set DORA_AUTH to its user:password"
    return str(error) or type(error).__name__


def _headline(text: str) -> str:
    """The part of a client library's message that a person wants to read."""
    cause = re.search(r"\[Errno -?\d+\] ([\w ]+)|(Read timed out)", text)
    return (cause[1] or cause[2]) if cause else shorten(without_credentials(text).strip().split("\n")[0], 300)


def user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user id without a name
        return str(os.getuid())


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
