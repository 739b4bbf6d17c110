"""Runs that were killed: their manifests, and the part of Ray's Jobs API that stopping uses."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from infra.processes import RecordedProcess
from infra.settings import Settings
from infra.store.store import Store

HERE = {"host": socket.gethostname()}


def process(alive: bool) -> dict[str, Any]:
    """This process, or one that has ended, as a manifest records it."""
    own = RecordedProcess.current()
    if alive:
        return HERE | {"pid": own.pid, "created": own.created}
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return HERE | {"pid": child.pid, "created": time.time()}


GONE = "its process is gone"


FLOW_RUN = str(uuid4())


class Jobs(BaseHTTPRequestHandler):
    """The part of Ray's Jobs API that stopping uses."""

    def do_GET(self) -> None:
        self._answer({"status": self.server.jobs[self.path.rsplit("/", 1)[1]]})  # type: ignore[attr-defined]

    def do_POST(self) -> None:
        self.server.jobs[self.path.split("/")[-2]] = "STOPPED"  # type: ignore[attr-defined]
        self._answer({"stopped": True})

    def _answer(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def ray() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Jobs) as server:
        server.jobs = {"dora-align-a-1": "RUNNING", "dora-sft-b-1": "RUNNING"}  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory, empty_mlflow_database: Path) -> str:
    """One database for the module."""
    return f"sqlite:///{shutil.copy(empty_mlflow_database, tmp_path_factory.mktemp('mlflow') / 'mlflow.db')}"


@pytest.fixture
def settings(tmp_path: Path, ray: ThreadingHTTPServer, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    monkeypatch.setenv("DORA_MLFLOW_URI", mlflow_uri)
    return Settings(ray_address=f"http://127.0.0.1:{ray.server_port}")


def write_manifest(settings: Settings, run_id: str, recorded: dict[str, Any], *submitted: str) -> None:
    names = {job: job.split("-")[1] for job in submitted}
    stages = [{"stage": name, "label": name, "digest": "d", "submission_id": job, "state": "running"} for job, name in names.items()]
    content = {"run_id": run_id, "project": "p", "flow_run_id": FLOW_RUN, "status": "running", "process": recorded, "stages": stages}
    Store(settings.store_uri).write_json(f"runs/{run_id}/run.json", content | {"started": time.time()})
