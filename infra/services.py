"""``dora up`` and ``dora down``: Prefect server and worker, MLflow server and a Ray head, on loopback, recorded.

``up`` is safe to repeat: what runs and answers stays, what died is started again, on its old port where that is free. If any
part fails to come up, everything this call started is ended again. ``down`` ends exactly what is recorded: the worker first,
so that flows can stop their jobs and say so to a server that still lives; the Prefect server last.

The servers use the same files as commands without servers (PREFECT_HOME, mlflow.db, mlartifacts), so history is one. MLflow
does not proxy artifacts: clients on this machine write them below ``home`` and the UI reads them there.

Left out: binding to anything but loopback and authentication of Prefect and MLflow; compose.yaml is for that.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import requests

from dora_core.errors import ServiceError
from infra.processes import RecordedProcess, free_port, spawn, terminate_tree
from infra.ray_head import RayHead, auth_headers, token_environment
from infra.settings import WORK_POOL, Service, ServicesRecord, Settings, tool_environment
from infra.store import write_atomic

PORTS = {"prefect": 4200, "mlflow": 5000, "ray": 8265}
STARTUP_SECONDS = 90.0
SILENT_SECONDS = 30.0
"""How long a service that runs may be silent before `up` restarts it: a busy machine is no reason."""
REQUEST_SECONDS = 10.0
STOP_ORDER = {"worker": 45.0, "mlflow": 5.0, "prefect": 10.0}
"""Seconds each gets to end by itself; a worker waits for its flows, a flow for its job's checkpoint. Ray ends after the worker."""


@dataclass(frozen=True)
class ServiceStatus:
    """``up``: runs and answers a real request; ``silent``: runs, does not answer; ``down``: recorded, not running."""

    name: str
    state: Literal["up", "silent", "down"]
    url: str
    pid: int
    log: str


def up(
    settings: Settings,
    *,
    on_progress: Callable[[str], None] = lambda _: None,
    register: Callable[[str, str], None] | None = None,
) -> ServicesRecord:
    """Start what does not run yet; returns the record with all URLs.

    Args:
        on_progress: gets one line per event, for people.
        register: ``register(prefect_api_url, work_pool)`` creates the deployments once server and worker are up.

    Raises:
        ServiceError: a service did not come up; the tail of its log is in the hint, and nothing that this call started runs on.
    """
    with _locked(settings):
        record = settings.services()
        old, fresh = dict(record.services), list[str]()
        keep = {
            name for name, service in old.items() if service.process.alive() and _answers_within(settings, record, name, SILENT_SECONDS)
        }
        if "prefect" not in keep:
            keep.discard("worker")  # a worker without its server polls the void
        try:
            for name in ("prefect", "mlflow", "ray", "worker"):
                if name in keep:
                    continue
                _end(settings, record, name)
                on_progress(f"{'restarting' if name in old else 'starting'} {name}")
                if name == "worker":
                    _wait(settings, record, "prefect")
                fresh.append(name)
                record.services[name] = _start(settings, name, record, old.get(name), on_progress)
                _save(settings, record)
            for name in fresh:
                _wait(settings, record, name)
            if register is not None:
                register(f"{record.services['prefect'].url}/api", WORK_POOL)
        except BaseException:
            for name in reversed(fresh):
                _end(settings, record, name)
            _save(settings, record)
            raise
        for name, service in record.services.items():
            on_progress(f"{name} {'is up' if name in fresh else 'was up already'} {service.url}".rstrip())
        return record


def down(settings: Settings) -> list[str]:
    """End the recorded services and Ray heads of commands that died; returns the names of what was running. Safe to repeat."""
    with _locked(settings):
        record = settings.services()
        ended = [name for name in ("worker", "ray", "mlflow", "prefect") if _end(settings, record, name)]
        ended += [f"ray/{name}" for name in RayHead.stop_orphans(settings.ray_folder)]
        settings.services_file.unlink(missing_ok=True)
        return ended


def status(settings: Settings) -> list[ServiceStatus]:
    """State of each recorded service; sends one real request to each that runs."""
    result = []
    for name, service in settings.services().services.items():
        state: Literal["up", "silent", "down"] = "down"
        if service.process.alive():
            state = "up" if _answers(settings, settings.services(), name) else "silent"
        result.append(ServiceStatus(name, state, service.url, service.process.pid, service.process.log))
    return result


# ---------------------------------------------------------------------------------------------------- one service each


def _start(settings: Settings, name: str, record: ServicesRecord, old: Service | None, on_progress: Callable[[str], None]) -> Service:
    preferred = int(old.url.rsplit(":", 1)[1]) if old and old.url else PORTS.get(name)
    if name == "ray":
        head = RayHead.start(_ray_folder(settings), dashboard_port=preferred, outlive=True)
        url, process = head.dashboard_url, head.process
    elif name == "worker":
        url, process = "", _spawn(settings, name, _worker_command(), {"PREFECT_API_URL": f"{record.services['prefect'].url}/api"})
    else:
        port = free_port(preferred)
        url = f"http://127.0.0.1:{port}"
        command = _prefect_command(port) if name == "prefect" else _mlflow_command(settings, port)
        process = _spawn(settings, name, command, {"PREFECT_API_URL": f"{url}/api", "PREFECT_UI_API_URL": f"{url}/api"})
    if url and preferred and not url.endswith(f":{preferred}"):
        on_progress(f"port {preferred} is in use, {name} takes {url.rsplit(':', 1)[1]}")
    return Service(url=url, process=process)


def _prefect_command(port: int) -> list[str]:
    return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--analytics-off"]


def _worker_command() -> list[str]:
    return [
        sys.executable, "-m", "prefect", "worker", "start", "--type", "process",
        "--pool", WORK_POOL, "--name", WORK_POOL, "--install-policy", "never",
    ]  # fmt: skip


def _mlflow_command(settings: Settings, port: int) -> list[str]:
    return [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", settings.mlflow_database, "--default-artifact-root", str(settings.mlflow_artifacts), "--no-serve-artifacts",
    ]  # fmt: skip


def _spawn(settings: Settings, name: str, command: list[str], extra: dict[str, str]) -> RecordedProcess:
    log = settings.log_folder / f"{name}.log"
    log.unlink(missing_ok=True)
    # The user's own server addresses must not leak into servers of ours; `extra` sets those that count.
    inherited = {k: v for k, v in os.environ.items() if k not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")}
    # Polling for flow runs is a local request here: 2 s instead of 15 s until a run triggered in the UI starts.
    environment = inherited | tool_environment(settings) | {"DORA_HOME": str(settings.root), "PREFECT_WORKER_QUERY_SECONDS": "2"} | extra
    return spawn(name, command, log=log, environment=environment)


def _end(settings: Settings, record: ServicesRecord, name: str) -> bool:
    service = record.services.pop(name, None)
    if name == "ray":
        return RayHead.stop_recorded(_ray_folder(settings))
    return bool(service and terminate_tree([service.process], grace=STOP_ORDER[name]))


# ------------------------------------------------------------------------------------------------------- health checks


def _wait(settings: Settings, record: ServicesRecord, name: str) -> None:
    if _answers_within(settings, record, name, STARTUP_SECONDS):
        return
    process = record.services[name].process
    what = f"does not answer after {STARTUP_SECONDS:.0f} s" if process.alive() else "ended while starting"
    raise ServiceError(f"{name} {what}", hint=f"last lines of {process.log}:\n{process.log_tail()}", retryable=False)


def _answers_within(settings: Settings, record: ServicesRecord, name: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not _answers(settings, record, name):
        if not record.services[name].process.alive() or time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _answers(settings: Settings, record: ServicesRecord, name: str) -> bool:
    """A request of the kind real clients make: reading flow runs (broken package versions pass /health), searching experiments."""
    services = record.services
    if name == "worker" and "prefect" not in services:
        return False
    request = {
        "prefect": lambda: _post(f"{services['prefect'].url}/api/flow_runs/filter", {"limit": 1}),
        "worker": lambda: _post(f"{services['prefect'].url}/api/work_pools/{WORK_POOL}/workers/filter", {}),
        "mlflow": lambda: _post(f"{services['mlflow'].url}/api/2.0/mlflow/experiments/search", {"max_results": 1}),
        "ray": lambda: _get(f"{services['ray'].url}/api/version", auth_headers(token_environment(_ray_folder(settings)))),
    }[name]
    try:
        response = request()
        return response.ok and (name != "worker" or _has_heartbeat(response.json(), services["worker"].process))
    except (requests.RequestException, ValueError, FileNotFoundError):
        return False


def _has_heartbeat(workers: list[dict[str, str]], process: RecordedProcess) -> bool:
    """One of the pool's workers was heard since this process started: a killed one stays ONLINE for 90 s."""
    return any(datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() > process.created for worker in workers)


def _post(url: str, body: dict[str, object]) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.post(url, json=body, timeout=REQUEST_SECONDS)


def _get(url: str, headers: dict[str, str]) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.get(url, headers=headers, timeout=REQUEST_SECONDS)


def _ray_folder(settings: Settings) -> Path:
    return settings.ray_folder / "services"


def _save(settings: Settings, record: ServicesRecord) -> None:
    write_atomic(settings.services_file, record.model_dump_json(indent=1) + "\n")


@contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    """One `up` or `down` at a time per home; the lock goes with the process."""
    settings.root.mkdir(parents=True, exist_ok=True)
    with Path(settings.root / "services.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServiceError(
                f"another `dora up` or `dora down` is at work in {settings.root}", hint="wait until it has finished"
            ) from error
        yield
