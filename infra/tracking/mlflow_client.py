"""Operations of a spool (``infra/tracking/tracker.py``) as calls of MLflow's client: each may be performed twice, to no effect.

An operation is a dict of JSON: ``kind`` (``start``, ``batch``, ``input``, ``artifact`` or ``finish``), ``run`` (a local id), ``time`` (Unix
seconds) and what the kind needs.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from infra.tracking.mlflow_limits import BATCH, DIGEST_CHARACTERS, ENTRIES
from infra.tracking.spool import Operation

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCAL_ID = "dora.local_id"

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
    """A client of one address for tracking and registry, with our time-outs. The import takes 1-2 s; a new SQLite file 4 s more."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def joined(operations: Iterable[Operation]) -> tuple[Operation, int]:
    """The first operation, and how many it stands for: neighbouring batches of one run go together, up to MLflow's limits.

    What waited for a server that was away is thousands of small batches; one call each would take minutes.
    """
    queue = iter(operations)
    first, count = next(queue), 1
    if first["kind"] != "batch":
        return first, count
    rows = {kind: list(first.get(kind, [])) for kind in BATCH}
    for more in queue:
        if more["kind"] != "batch" or more["run"] != first["run"]:
            break
        sizes = {kind: len(rows[kind]) + len(more.get(kind, [])) for kind in BATCH}
        if sum(sizes.values()) > ENTRIES or any(sizes[kind] > most for kind, most in BATCH.items()):
            break
        for kind, already in rows.items():
            already += more.get(kind, [])
        count += 1
    return first | rows, count


class MlflowCalls:
    """One server (or SQLite file) and the ids it has given.

    Attributes:
        ids: local id of a run → MLflow's.
        experiments: name → id, of those used here.
    """

    def __init__(self, uri: str):
        self.uri = uri
        self.ids: dict[str, str] = {}
        self.experiments: dict[str, str] = {}
        self._client: MlflowClient | None = None

    def is_refusal(self, operation: Operation, error: Exception) -> bool:
        """Would the same operation fail for ever? A wrong address or password can be mended, a rejected value cannot."""
        if self._client is None:
            return False
        import requests
        from mlflow.exceptions import MlflowException, RestException

        if isinstance(error, requests.HTTPError) and error.response is not None:  # of an artifact: those go without MLflow's protocol
            return error.response.status_code in (400, 409, 413)
        if isinstance(error, MlflowException):
            status = error.get_http_status_code()
            if operation["kind"] == "start":  # what answers otherwise than in JSON is no MLflow: a port that wants https
                return status in (400, 409, 413) and (isinstance(error, RestException) or not self.uri.startswith("http"))
            return status in (400, 409, 413) or (status == 404 and self._is_known_there(operation["run"]))
        return isinstance(error, (FileNotFoundError, TypeError, ValueError))

    def _is_known_there(self, but: str) -> bool:
        """Does the server know any of our runs but one, which somebody has deleted? Else it is another server."""
        from mlflow.exceptions import MlflowException

        assert self._client is not None
        for local_id, mlflow_id in self.ids.items():
            with suppress(MlflowException):
                if local_id != but and self._client.get_run(mlflow_id):
                    return True
        return False

    def perform(self, operation: Operation) -> dict[str, str] | None:
        """Send one operation; returns ``{local id: MLflow id}`` where a run was created.

        Raises:
            Exception: whatever MLflow's client does; see :meth:`is_refusal`.
        """
        if self._client is None:
            self._client = mlflow_client(self.uri)  # before any other import of mlflow: it sets the environment
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

        client, kind = self._client, operation["kind"]
        if kind == "start":
            return {operation["run"]: self._create_run(client, operation)}
        run_id = self.ids.get(operation["run"])
        if run_id is None:  # its creation was refused, and that has been reported
            return None
        if kind == "batch":
            client.log_batch(
                run_id,
                metrics=[Metric(*row) for row in operation.get("metrics", [])],
                params=[Param(*row) for row in operation.get("params", [])],
                tags=[RunTag(*row) for row in operation.get("tags", [])],
            )
        elif kind == "input":
            dataset = Dataset(
                name=operation["name"],
                digest=operation["digest"][:DIGEST_CHARACTERS],
                source_type=operation["type"],
                source=json.dumps(operation["source"]),
            )
            client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags=[InputTag("mlflow.data.context", operation["context"])])])
        elif kind == "artifact":
            client.log_artifact(run_id, operation["file"], None if operation["folder"] == "." else operation["folder"])
        else:
            client.set_terminated(run_id, operation["status"], end_time=milliseconds(operation["time"]))
        return None

    def _create_run(self, client: MlflowClient, operation: Operation) -> str:
        experiment = self._experiment(client, operation["project"], operation["artifact_root"])
        known = client.search_runs([experiment], filter_string=f"tags.`{LOCAL_ID}` = '{operation['run']}'", max_results=1)
        if known:  # created by an attempt whose answer was lost
            return known[0].info.run_id
        tags = {LOCAL_ID: operation["run"], "mlflow.user": operation["user"], "mlflow.source.name": "dora", "mlflow.source.type": "PROJECT"}
        parent = self.ids.get(operation["parent"])
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        run = client.create_run(experiment, start_time=milliseconds(operation["time"]), tags=tags, run_name=operation["name"])
        return run.info.run_id

    def _experiment(self, client: MlflowClient, project: str, artifact_root: str | None) -> str:
        from mlflow.exceptions import MlflowException

        if project not in self.experiments:
            experiment = client.get_experiment_by_name(project)
            if experiment is None:
                location = (Path(artifact_root) / project).as_uri() if artifact_root and not self.uri.startswith("http") else None
                try:
                    client.create_experiment(project, artifact_location=location)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was quicker
                        raise
                experiment = client.get_experiment_by_name(project)
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
            self.experiments[project] = experiment.experiment_id
        return self.experiments[project]
