"""MLflow tracking that can neither kill nor stall a realignment.

One :class:`Tracker` serves one realignment: an experiment per project, a parent run, nested stage runs. Every call appends an operation
to an :class:`~infra.tracking.outbox.Outbox` and returns (well under a millisecond, figures apart); one background thread sends them in
order with short time-outs, many small ones in one call. A server that is away or never answers, or another that has taken its port, costs
the caller nothing: updates that could not be sent stay in the outbox, and the next tracker of the same history sends them with their run
ids and time stamps. Every operation is idempotent (runs carry their local id as a tag), so sending one twice changes nothing.

Run ids returned here are local; :meth:`Tracker.mlflow_id` returns the server's once it is known. A run that was never finished ends as
KILLED, by :meth:`Tracker.close` or, after a kill -9, by the next tracker.

Left out: the fluent ``mlflow.*`` API (process-global state), and model files (``infra/tracking/model_registry.py`` registers them by URI).
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
import urllib.parse
import uuid
import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.back_ends import without_credentials
from infra.databases import sqlite_file
from infra.store.journal import JournalPart
from infra.store.json_files import StoredResult
from infra.tracking.mlflow_client import MlflowCalls, joined, milliseconds, user_name
from infra.tracking.mlflow_limits import ENTRIES, flatten, metric_rows, shorten, text_chunks
from infra.tracking.outbox import Artifact, Batch, Curves, Finish, Input, Operation, Outbox, Start, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UI_PAGES = "?workflowType=machine_learning"  # without it MLflow 3 opens its pages for agents
MAX_WARNINGS = 5


class Tracker:
    """See the module docstring. No method raises an error of MLflow's; :meth:`close` returns warnings about updates that were not sent."""

    def __init__(self, uri: str, project: str, outboxes: list[Outbox], artifact_root: Path | None):
        self.uri, self.project = uri, project
        self._outbox, self._artifact_root = outboxes[-1], artifact_root
        self._outboxes = outboxes
        self._queue: deque[tuple[Outbox, int, Operation]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._open_runs: dict[str, None] = {}  # an ordered set
        self._calls = MlflowCalls(uri, artifact_root)
        self._lost: list[str] = []
        self._problem = ""
        for outbox in outboxes:
            self._calls.ids |= outbox.facts
            self._queue.extend((outbox, seq, operation) for seq, operation in outbox.pending)
        self._finish_abandoned_runs(outboxes[:-1])
        self._thread = threading.Thread(target=self._work, name="mlflow-tracking", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, uri: str, project: str, outbox: Path, artifact_root: Path | None = None, history: str | None = None) -> Tracker:
        """Start tracking; updates that earlier trackers of the same history left in ``outbox`` are sent first.

        Args:
            uri: ``sqlite:///path/mlflow.db`` (no server needed) or ``http(s)://host:port``.
            project: name of the experiment.
            outbox: folder for operations that are not sent yet.
            artifact_root: where artifacts of a new experiment go, ``<artifact_root>/<project>``. Needed with SQLite; None leaves
                it to the server.
            history: one name for a tracking database that several addresses lead to. Default: the address.

        Raises:
            OSError: ``outbox`` cannot be written.
        """
        keys = [_key(history or uri)]
        if (file := sqlite_file(history or uri)) is not None and file.parent == outbox.parent:
            keys.append(_key(f"beside the outbox: {file.name}"))  # the same after the home has moved; the key before is of earlier releases
        adopted = [found for key in keys for found in Outbox.adopt(outbox, key)]
        return cls(uri, project, [*adopted, Outbox.create(outbox, keys[-1])], artifact_root)

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
        start = Start(run=run_id, time=time.time(), name=name, parent=parent, project=self.project, artifact_root=root, user=user_name())
        self._send_later(start)
        self._texts(run_id, tags=(tags or {}).items(), params=flatten(params or {}))
        return run_id

    def replay(self, run_id: str, part: JournalPart, prefix: str = "") -> None:
        """Send the metrics of one part of a stage's journal, with their own steps and times; progress events are not for MLflow.

        Args:
            prefix: put before each metric's name: ``align/`` makes ``align/loss`` of ``loss``.
        """
        if any(event["kind"] == "metrics" for event in part.events):
            self._send_later(Curves(run=run_id, time=time.time(), store=part.store, part=part.name, prefix=prefix))

    def log_metrics(self, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
        """Log one value of each metric; further calls with other steps make a curve."""
        now = milliseconds(time.time())
        rows = metric_rows((name, float(value), now, step) for name, value in values.items())
        for start in range(0, len(rows), ENTRIES):
            self._send_later(Batch(run=run_id, time=time.time(), metrics=rows[start : start + ENTRIES]))

    def log_result(self, run_id: str, result: StoredResult, images: Mapping[str, bytes]) -> None:
        """Log a stage's ``result.json``: its metrics, rows and seconds; the file itself; its figures (:meth:`drawn`)."""
        self.log_metrics(run_id, {"rows": result["rows"], "seconds": result["seconds"]} | result["metrics"])
        self.log_document(run_id, "result.json", result)
        self.log_images(run_id, images)

    def drawn(self, figures: Mapping[str, Figure]) -> dict[str, bytes]:
        """Return figures as PNG, which MLflow's UI shows inline; one that cannot be drawn becomes a warning."""
        images = {}
        for name, figure in figures.items():
            try:
                images[name], missing = _png(figure)
                if missing:
                    self._lost.append(f"no installed font draws {missing} of the figure {name}: install one, on Debian fonts-noto-cjk")
            except Exception as error:  # matplotlib may raise anything; a failing figure does not fail the run
                self._lost.append(f"figure {name} was not drawn: {_headline(str(error))}")
        return images

    def log_images(self, run_id: str, images: Mapping[str, bytes], folder: str = "figures") -> None:
        """Log images as artifacts ``<folder>/<name>.png``."""
        for name, content in images.items():
            self._keep(run_id, f"{folder}/{name}.png", content)

    def log_document(self, run_id: str, name: str, content: Mapping[str, Any]) -> None:
        """Log one JSON artifact."""
        self._keep(run_id, name, json.dumps(content, indent=1, sort_keys=True, default=str).encode())

    def log_text(self, run_id: str, name: str, text: str) -> None:
        """Log one text artifact, such as ``report.html``."""
        self._keep(run_id, name, text.encode())

    def log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run that may have ended."""
        self._texts(run_id, tags=tags.items())

    def log_input(
        self, run_id: str, name: str, uri: str, digest: str, context: str, columns: Mapping[str, str] | None = None, rows: int | None = None
    ) -> None:
        """Log dataset lineage, shown under "Datasets used" with its digest (36 of 64 digits fit; the source holds all).

        MLflow keeps the schema of the first call with a name and a digest; later ones refer to it.

        Args:
            columns: Arrow type by name.
            rows: number of rows.
        """
        source = {"uri": without_credentials(uri), "digest": digest}
        scheme = urllib.parse.urlsplit(uri).scheme or "local"
        self._send_later(
            Input(
                run=run_id,
                time=time.time(),
                name=name,
                digest=digest,
                source=source,
                type=scheme,
                context=context,
                columns=dict(columns or {}),
                rows=rows,
            )
        )

    def log_files(self, run_id: str, files: Mapping[str, Path]) -> None:
        """Log small files as artifacts, by path inside the run; they are copied now, so later changes do not matter."""
        for name, path in files.items():
            try:
                content = path.read_bytes()
            except OSError as error:
                self._lost.append(f"artifact {name} was not logged: {error}")
            else:
                self._keep(run_id, name, content)

    def finish(self, run_id: str, status: Status, tags: Mapping[str, str] | None = None) -> None:
        """End a run explicitly: MLflow itself would report FINISHED after an uncaught exception."""
        self._open_runs.pop(run_id, None)
        self._texts(run_id, tags=(tags or {}).items())
        self._send_later(Finish(run=run_id, time=time.time(), status=status))

    def mlflow_id(self, run_id: str, wait_seconds: float = 0.0) -> str | None:
        """Return the server's id of a run, or None while (or if, after ``wait_seconds``) the server has not created it."""
        with self._changed:
            self._changed.wait_for(lambda: run_id in self._calls.ids, timeout=wait_seconds)
            return self._calls.ids.get(run_id)

    def url(self, run_id: str) -> str | None:
        """Return the URL of the run's page, or None with SQLite (no server) or while the server does not have the run."""
        mlflow_id, experiment = self.mlflow_id(run_id), self._calls.experiments.get(self.project)
        if mlflow_id is None or experiment is None or not self.uri.startswith("http"):
            return None
        return f"{without_credentials(self.uri).rstrip('/')}/#/experiments/{experiment}/runs/{mlflow_id}{UI_PAGES}"

    def artifact_url(self, run_id: str, name: str) -> str | None:
        """Return the URL of the page that shows an artifact of the run; None as :meth:`url`."""
        page = self.url(run_id)
        return None if page is None else f"{page.removesuffix(UI_PAGES)}/artifacts/{urllib.parse.quote(name)}{UI_PAGES}"

    def version_url(self, model: str, version: str) -> str | None:
        """Return the URL of a registered version's page; None with SQLite."""
        base = without_credentials(self.uri).rstrip("/")
        return f"{base}/#/models/{urllib.parse.quote(model)}/versions/{version}{UI_PAGES}" if self.uri.startswith("http") else None

    def close(self, patience_seconds: float = 10.0, limit_seconds: float = 60.0) -> list[str]:
        """End unfinished runs as KILLED, send the waiting updates, and return warnings (empty: everything is in MLflow).

        Returns as soon as everything is sent, after one last failed attempt, after ``patience_seconds`` without progress,
        or after ``limit_seconds``. Later calls of any method have no effect.
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
        notes = list(dict.fromkeys([*self._calls.notes, *self._lost]))
        if len(notes) > MAX_WARNINGS:
            notes[MAX_WARNINGS:] = [f"… and {len(notes) - MAX_WARNINGS} more"]
        waiting = sum(outbox.open_operations for outbox in self._outboxes)
        if waiting:
            reason = _headline(self._problem or "no answer yet")
            where = f"{without_credentials(self.uri)} wait in {self._outbox.path.parent}"
            notes.append(f"{waiting} MLflow updates for {where} ({reason}); the next run or `dora reap` sends them")
        return notes

    # --------------------------------------------------------------------------------------------- appending (callers)

    def _send_later(self, operation: Operation) -> None:
        with self._changed:
            if self._closing:
                return
            try:
                self._queue.append((self._outbox, self._outbox.append(operation), operation))
            except OSError as error:  # disk full: the run continues without tracking
                self._lost.append(f"{operation.kind} was not sent: the outbox cannot be written: {error}")
            self._changed.notify_all()

    def _texts(self, run_id: str, params: Iterable[tuple[str, str]] = (), tags: Iterable[tuple[str, str]] = ()) -> None:
        for chunk in text_chunks("tags", list(tags)):
            self._send_later(Batch(run=run_id, time=time.time(), tags=chunk))
        for chunk in text_chunks("params", list(params)):
            self._send_later(Batch(run=run_id, time=time.time(), params=chunk))

    def _keep(self, run_id: str, name: str, content: bytes) -> None:
        if self._closing:
            return
        try:
            file = self._outbox.keep(name, content)
        except OSError as error:
            self._lost.append(f"artifact {name} was not sent: the outbox cannot be written: {error}")
        else:
            self._send_later(Artifact(run=run_id, time=time.time(), file=file, folder=str(Path(name).parent)))

    def _finish_abandoned_runs(self, outboxes: list[Outbox]) -> None:
        """End the runs whose tracker was killed, which MLflow would show as RUNNING for ever."""
        for outbox in outboxes:
            started = {op.run: None for op in outbox.operations.values() if isinstance(op, Start)}
            finished = {op.run for op in outbox.operations.values() if isinstance(op, Finish)}
            for run_id in reversed([run for run in started if run not in finished]):
                self._texts(run_id, tags=[("dora.error", "its process is gone")])
                self._send_later(Finish(run=run_id, time=time.time(), status="KILLED"))

    # -------------------------------------------------------------------------------------- sending (background thread)

    def _work(self) -> None:
        """Send in order; retry a failure after 1, 2, 4 … 30 s, and once more when closing."""
        delay, apart = 1.0, 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    break
                front = list(islice(self._queue, 1 if apart else ENTRIES))
            operation, count, facts = front[0][2], 1, None
            try:
                operation, count = joined(operation for _, _, operation in front)
                facts = self._calls.perform(operation)
            except Exception as error:  # a thread boundary: every error of MLflow's ends here
                if not self._calls.is_refusal(operation, error):
                    self._problem = _problem(error)
                    with self._changed:
                        if self._closing:
                            break
                        self._changed.wait_for(lambda: self._closing, timeout=delay)
                    delay = min(2 * delay, 30.0)
                    continue
                if count > 1:  # find the one that is refused: send them one by one
                    apart = count
                    continue
                try:
                    loss = self._loss(operation, error)
                except Exception as trouble:  # the server went away meanwhile
                    self._problem = _problem(trouble)
                    with self._changed:
                        if self._closing:
                            break
                        self._changed.wait_for(lambda: self._closing, timeout=delay)
                    continue
                self._lost.append(loss)
            delay, apart = 1.0, max(0, apart - count)
            with suppress(OSError):  # not acknowledged: sent again by the next tracker, to no effect
                for outbox, seq, _ in front[:count]:
                    outbox.acknowledge(seq, facts)
            with self._changed:
                for _ in range(count):
                    self._queue.popleft()
                self._calls.ids |= facts or {}
                self._changed.notify_all()
        waits = any(outbox.open_operations for outbox in self._outboxes)
        for outbox in self._outboxes:
            outbox.close(keep=waits)  # the end of a run may wait in one, and the id that it needs be known in another

    def _loss(self, operation: Operation, error: Exception) -> str:
        """Give an operation up, of a batch as few rows as possible; returns a warning."""
        if isinstance(operation, Curves):
            reason = f"the part is missing or damaged in {operation.store}: {_headline(str(error))}"
            return f"metrics of {operation.part} were not sent: {reason}"
        if isinstance(operation, Batch):
            names = self._calls.refused_rows(operation)
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            return f"MLflow refused {shown or 'a batch'}: {_headline(str(error))}"
        return f"MLflow refused {operation.kind}: {_headline(str(error))}"


def _key(history: str) -> str:
    """Part of an outbox's name; not the address itself, which may hold a password."""
    return hashlib.sha256(history.encode()).hexdigest()[:8]


def _problem(error: Exception) -> str:
    """Return the reason why an operation did not arrive, with the remedy if there is one."""
    status = error.get_http_status_code() if hasattr(error, "get_http_status_code") else None
    if status in (401, 403):
        return f"it refuses us ({status}): set DORA_AUTH to its user:password"
    return str(error) or type(error).__name__


def _headline(text: str) -> str:
    """Reduce a client library's message to its cause, without credentials."""
    cause = re.search(r"\[Errno -?\d+\] ([\w ]+)|(Read timed out)", text)
    return (cause[1] or cause[2]) if cause else shorten(without_credentials(text).strip().split("\n")[0], 300)


def _png(figure: Figure) -> tuple[bytes, str]:
    """A figure as PNG, and the characters, at most five, that no font had."""
    buffer = BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(buffer, format="png", dpi=120)
    numbers = [found[1] for one in caught if (found := re.match(r"Glyph (\d+) ", str(one.message)))]
    missing = [chr(int(number)) for number in dict.fromkeys(numbers)]
    return buffer.getvalue(), " ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
