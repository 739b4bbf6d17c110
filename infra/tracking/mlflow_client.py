"""Operations of the outbox (``infra/tracking/outbox.py``) as calls of MLflow's client; each is idempotent."""

from __future__ import annotations

import functools
import getpass
import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dora_core.environment import set_default
from dora_core.errors import StoreError
from infra.databases import sqlite_file
from infra.store.journal import read_part
from infra.store.store import Store
from infra.tracking.mlflow_database import below, ensure_database, local_path
from infra.tracking.mlflow_import import load_mlflow
from infra.tracking.mlflow_limits import BATCH, DIGEST_CHARACTERS, ENTRIES, metric_rows, shorten
from infra.tracking.moved_home import follow_home
from infra.tracking.outbox import Artifact, Batch, Curves, Finish, Input, Operation, Start

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCAL_ID = "dora.local_id"
EXPERIMENT_KIND = "mlflow.experimentKind"
TRAINING = "custom_model_development"
"""Kind of our experiments: MLflow's UI reads it (``ExperimentKind`` in its sources) to open the training pages, not those for agents."""

MOST_COLUMNS = 100
"""Columns of a dataset's schema; MLflow refuses one of over 1 MB."""
TYPES = {
    "string": "string",
    "large_string": "string",
    "int": "long",
    "uint": "long",
    "float": "double",
    "double": "double",
    "bool": "boolean",
    "timestamp": "datetime",
    "date": "datetime",
    "binary": "binary",
}
"""Beginning of the name of an Arrow type → MLflow's type."""

# Process-wide, because MLflow reads them at each call. A user's own setting wins.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # seconds without an answer; the default is 120, times 7 retries
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the tracker tries again by itself
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # the first use of a SQLite file reports dozens of migrations
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to `--json`
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}


def mlflow_client(uri: str) -> MlflowClient:
    """Return a client for tracking and registry, with short time-outs. The import takes 1-2 s, a new SQLite file 4 s more."""
    for name, value in ENVIRONMENT.items():
        set_default(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    load_mlflow()
    if (file := sqlite_file(uri)) is not None:
        ensure_database(file)
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry

    from infra.tracking.store_artifacts import SCHEME, StoreArtifacts

    _artifact_repository_registry.register(SCHEME, StoreArtifacts)  # also where this package's entry points are not installed
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user id without a name
        return str(os.getuid())


def milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


@functools.cache
def _opened(store: str) -> Store:
    return Store(store)


def as_batch(operation: Batch | Curves) -> Batch:
    """Read the journal's part where ``operation`` names one; any number of rows.

    Raises:
        FileNotFoundError: the part was deleted. ValueError: it is damaged. StoreError: its store is not there.
    """
    if isinstance(operation, Batch):
        return operation
    if "://" not in operation.store and not Path(operation.store).is_dir():
        raise StoreError(f"the store {operation.store} is not there", hint="mount it again, or delete the outbox")
    events = read_part(_opened(operation.store), operation.part).events
    values = [
        (f"{operation.prefix}{name}", value, milliseconds(event["time"]), event["step"])
        for event in events
        if event["kind"] == "metrics"
        for name, value in event["values"].items()
    ]
    return Batch(run=operation.run, time=operation.time, metrics=metric_rows(values))


def joined(operations: Iterable[Operation]) -> tuple[Operation, int]:
    """Merge the first operation with following ones; returns the merged one and the number of operations in it.

    Neighbouring batches and curves of one run are merged up to MLflow's limits: updates that waited for a server are thousands of small
    batches, and one call each would take minutes.

    Raises:
        OSError, ValueError, StoreError: the first operation's journal cannot be read; see :func:`as_batch`.
    """
    queue = iter(operations)
    first, count = next(queue), 1
    if not isinstance(first, Batch | Curves):
        return first, count
    rows = {kind: list(getattr(as_batch(first), kind)) for kind in BATCH}
    for more in queue:
        if not isinstance(more, Batch | Curves) or more.run != first.run:
            break
        try:
            batch = as_batch(more)
        except (OSError, ValueError, StoreError):  # raised again when it is the first
            break
        sizes = {kind: len(rows[kind]) + len(getattr(batch, kind)) for kind in BATCH}
        if sum(sizes.values()) > ENTRIES or any(sizes[kind] > most for kind, most in BATCH.items()):
            break
        for kind, already in rows.items():
            already += getattr(batch, kind)
        count += 1
    return Batch(run=first.run, time=first.time, **rows), count


def columns_text(columns: Mapping[str, str]) -> str | None:
    """Return a dataset's schema in the form that MLflow's pages draw as a table (``Schema.to_json``); None without a column.

    Types without a name in MLflow (lists, structs) keep Arrow's.
    """
    found = [{"name": name, "type": _type_name(kind), "required": False} for name, kind in islice(columns.items(), MOST_COLUMNS)]
    return json.dumps({"mlflow_colspec": found}) if found else None


def _type_name(arrow: str) -> str:
    known = next((name for start, name in TYPES.items() if arrow.startswith(start)), None)
    return known or shorten(arrow, 200)


class MlflowCalls:
    """One server (or SQLite file) and the ids it has assigned.

    Args:
        artifact_root: where artifacts of experiments in a SQLite file go; None: as each operation says, or as the server decides.

    Attributes:
        ids: local id of a run → MLflow's.
        experiments: name → id of the experiments used here.
        notes: about the places of artifacts.
    """

    def __init__(self, uri: str, artifact_root: Path | None = None):
        self.uri, self._artifact_root = uri, artifact_root
        self.notes: list[str] = []
        self.ids: dict[str, str] = {}
        self.experiments: dict[str, str] = {}
        self._client: MlflowClient | None = None

    def is_refusal(self, operation: Operation, error: Exception) -> bool:
        """Whether the same operation would fail for ever. A wrong address or password can be corrected, a rejected value cannot."""
        if isinstance(operation, Curves):  # its journal could not be read
            return isinstance(error, (FileNotFoundError, ValueError))
        if self._client is None:
            return False
        import requests
        from mlflow.exceptions import MlflowException, RestException

        if isinstance(error, requests.HTTPError) and error.response is not None:  # of an artifact: uploads do not use MLflow's protocol
            return error.response.status_code in (400, 409, 413)
        if isinstance(error, MlflowException):
            status = error.get_http_status_code()
            if isinstance(operation, Start):  # an answer that is not JSON comes from another server: a port that requires https
                return status in (400, 409, 413) and (isinstance(error, RestException) or not self.uri.startswith("http"))
            return status in (400, 409, 413) or (status == 404 and self._is_known_there(operation.run))
        return isinstance(error, (FileNotFoundError, TypeError, ValueError))

    def _is_known_there(self, but: str) -> bool:
        """Whether the server has another run of this tracker: then the missing one was deleted, else this is another server."""
        from mlflow.exceptions import MlflowException

        assert self._client is not None
        for local_id, mlflow_id in self.ids.items():
            with suppress(MlflowException):
                if local_id != but and self._client.get_run(mlflow_id):
                    return True
        return False

    def perform(self, operation: Operation) -> dict[str, str] | None:
        """Send one operation; returns ``{local id: MLflow id}`` if a run was created.

        Raises:
            Exception: any that MLflow's client raises; see :meth:`is_refusal`.
        """
        if self._client is None:
            if self._artifact_root is not None and (file := sqlite_file(self.uri)) is not None:
                follow_home(file, self._artifact_root)
            self._client = mlflow_client(self.uri)  # before any other import of mlflow: it sets the environment
        from mlflow.entities import Dataset, DatasetInput, InputTag

        client = self._client
        if isinstance(operation, Start):
            return {operation.run: self._create_run(client, operation)}
        run_id = self.ids.get(operation.run)
        if run_id is None:  # its creation was refused, and that has been reported
            return None
        match operation:
            case Batch() | Curves():
                self._log_batch(client, run_id, as_batch(operation))
            case Input():
                dataset = Dataset(
                    name=operation.name,
                    digest=operation.digest[:DIGEST_CHARACTERS],
                    source_type=operation.type,
                    source=json.dumps(operation.source),
                    schema=columns_text(operation.columns),
                    profile=None if operation.rows is None else json.dumps({"num_rows": operation.rows}),
                )
                tags = [InputTag("mlflow.data.context", operation.context)]
                client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags=tags)])
            case Artifact():
                client.log_artifact(run_id, operation.file, None if operation.folder == "." else operation.folder)
            case Finish():
                client.set_terminated(run_id, operation.status, end_time=milliseconds(operation.time))
        return None

    def _log_batch(self, client: MlflowClient, run_id: str, batch: Batch) -> None:
        """Send a batch in as many calls as it needs: one part of a journal may hold more metrics than a call."""
        from mlflow.entities import Metric, Param, RunTag

        params, tags = [Param(*row) for row in batch.params], [RunTag(*row) for row in batch.tags]
        for start in range(0, max(len(batch.metrics), 1), BATCH["metrics"]):
            metrics = [Metric(*row) for row in batch.metrics[start : start + BATCH["metrics"]]]
            client.log_batch(run_id, metrics=metrics, params=params, tags=tags)
            params, tags = [], []

    def refused_rows(self, operation: Batch | Curves) -> list[str]:
        """Send a refused batch in halves, down to single rows; returns the names that MLflow refuses: each costs itself alone.

        Raises:
            Exception: as :meth:`perform`, for another reason than a refusal. What was sent is sent again then, to no effect.
        """
        batch = as_batch(operation)
        rows = [(kind, row) for kind in BATCH for row in getattr(batch, kind)]
        if len(rows) < 2:
            return [str(row[0]) for _, row in rows]
        refused = []
        for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            part = Batch(run=batch.run, time=batch.time, **{kind: [row for each, row in half if each == kind] for kind in BATCH})
            try:
                self.perform(part)
            except Exception as error:
                if not self.is_refusal(part, error):
                    raise
                refused += self.refused_rows(part)
        return refused

    def _create_run(self, client: MlflowClient, operation: Start) -> str:
        root = operation.artifact_root if self._artifact_root is None else str(self._artifact_root.resolve())
        experiment = self._experiment(client, operation.project, root)
        known = client.search_runs([experiment], filter_string=f"tags.`{LOCAL_ID}` = '{operation.run}'", max_results=1)
        if known:  # created by an attempt whose answer was lost
            return str(known[0].info.run_id)
        tags = {LOCAL_ID: operation.run, "mlflow.user": operation.user, "mlflow.source.name": "dora", "mlflow.source.type": "PROJECT"}
        parent = self.ids.get(operation.parent) if operation.parent else None
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        run = client.create_run(experiment, start_time=milliseconds(operation.time), tags=tags, run_name=operation.name)
        return str(run.info.run_id)

    def _experiment(self, client: MlflowClient, project: str, artifact_root: str | None) -> str:
        from mlflow.exceptions import MlflowException

        if project not in self.experiments:
            experiment = client.get_experiment_by_name(project)
            if experiment is None:
                location = (Path(artifact_root) / project).as_uri() if artifact_root and not self.uri.startswith("http") else None
                try:
                    client.create_experiment(project, artifact_location=location)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process has just created it
                        raise
                experiment = client.get_experiment_by_name(project)
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
            if EXPERIMENT_KIND not in experiment.tags:  # a person may have chosen another
                client.set_experiment_tag(experiment.experiment_id, EXPERIMENT_KIND, TRAINING)
            place = local_path(experiment.artifact_location)
            if artifact_root and place is not None and not below(place, Path(artifact_root)):
                self.notes.append(f"artifacts of the experiment {project} go to {place}, as MLflow has it, and not below {artifact_root}")
            self.experiments[project] = experiment.experiment_id
        return self.experiments[project]
