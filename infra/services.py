"""``dora up`` and ``dora down``: Prefect server and worker, MLflow server, a Ray head and the home page, recorded.

``up`` is safe to repeat: a service that runs and answers stays, a dead one is started again, on its old port if that is free; runs that
wait for it continue. A service that fails to come up is ended, the others stay: repeating ``up`` starts what is missing. ``down`` ends the
recorded services: the worker first, so that flows can stop their jobs and report to a live server; the Prefect server last.

The servers use the same files or databases as commands without servers (``infra/back_ends.py``), so there is one history. MLflow does not
proxy artifacts: clients write them below ``home``, or into the bucket, and the UI reads them there.

They listen on loopback, and on another address only with a password: Prefect, MLflow and the home page then require ``DORA_AUTH``, Ray
always requires its token. Open without one: Prefect's ``/api/health`` and ``/api/ready``, MLflow's ``/health``, and the static files of
Prefect's and Ray's pages, which hold no data.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psutil
import requests

from dora_core.errors import ConfigError, ServiceError
from infra.back_ends import (
    AUTH,
    DATABASE_PASSWORD,
    NONE,
    address_of,
    check_host,
    check_public,
    ensure_databases,
    is_loopback,
    names_of,
    public_address,
    split_postgres,
    write_private,
)
from infra.child_environment import MLFLOW_LOGIN, PREFECT_LOGIN, RAY_LOGIN, forget, python, without_proxy
from infra.databases import sqlite_file, sqlite_url
from infra.ports import free_port, reserved_until_bound
from infra.processes import RecordedProcess, spawn, terminate_tree
from infra.ray_head import TOKEN, RayHead, auth_headers, token_environment
from infra.settings import WORK_POOL, Service, ServicesRecord, Settings, server_environment
from infra.starting import Patience, look_at
from infra.store.store import check_writable, write_atomic
from infra.tracking.mlflow_database import ensure_database
from infra.tracking.moved_home import follow_home

PORTS = {"prefect": 4200, "mlflow": 5000, "ray": 8265, "home": 4100}
STARTUP_SECONDS = 90.0
"""Time for a start on a quiet machine; a busy one gets more (``infra/starting.py``)."""
START_ATTEMPTS = 3
SILENT_SECONDS = 30.0
"""Silence after which `up` restarts a running service; a busy machine is silent for less."""
REQUEST_SECONDS = 10.0
PAGES = {
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the newer pages load a third party's analytics, whatever the settings are
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}
"""Environment of Prefect's server for pages that load nothing from elsewhere."""
FEWER_WRITES = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",  # one transaction instead of a hundred
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",  # the end of a run waits for it
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "15",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS": "15",
    "PREFECT_SERVER_SERVICES_CLEANUP_RECONCILER_LOOP_SECONDS": "30",
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
    "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
}
"""Environment of Prefect's server on SQLite, which has one writer at a time; others wait (``infra/prefect_server.py``). PostgreSQL needs
none of it."""
UNCANCELLABLE = (
    "the worker and its runs continue; after an outage of Prefect over 30 s they miss cancel requests: `dora reap`, which also runs every "
    "ten minutes, stops a run that was cancelled a minute ago; new runs are unaffected"
)
"""Prefect 3.8 watches each run for cancellation, and gives up after three failed requests, for as long as the run lives."""
CONTAINER_MEMORY = Path("/sys/fs/cgroup/memory.max")
STOP_ORDER = {"home": 5.0, "worker": 45.0, "mlflow": 5.0, "prefect": 10.0}
"""Seconds for each to end by itself; a worker waits for its flows, a flow for its job's checkpoint. Ray ends after the worker."""


@dataclass(frozen=True)
class ServiceStatus:
    """State of one service. ``up``: runs and answers a real request; ``silent``: runs, does not answer; ``down``: recorded, not running."""

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
    """Start the services that do not run yet; returns the record with all URLs.

    Args:
        on_progress: called with one line per event.
        register: ``register(prefect_api_url, work_pool)`` creates the deployments once server and worker are up.

    Raises:
        ConfigError: other back ends, another address or password than the running servers have; no password for the network.
        ServiceError: a service did not come up; the hint names its log, and the others run.
        StoreError: the artifacts' bucket cannot be written.
    """
    with _locked(settings), reserved_until_bound():
        settings, record = _settle(settings, on_progress)
        old, fresh, failed = dict(record.services), list[str](), dict[str, ServiceError]()

        def attempt(name: str, step: Callable[[], object]) -> bool:
            """Whether ``step`` went well; a service that failed is ended, and the others continue."""
            try:
                step()
            except ServiceError as error:
                failed[name] = error
                _end(settings, record, name)
                _save(settings, record)
            return name not in failed

        def start(name: str) -> None:
            record.services[name] = _start(settings, name, record, old.get(name), on_progress)
            _save(settings, record)

        def wait(name: str) -> None:
            _wait(settings, record, name, on_progress)

        try:
            for name in ("prefect", "mlflow", "ray", "worker", "home"):
                if name == "ray" and settings.ray_address is not None:  # an external cluster
                    continue
                if name == "worker" and ("prefect" in failed or not attempt("prefect", partial(wait, "prefect"))):
                    continue
                if name in old and _stays(settings, record, name, old):
                    if name == "worker" and "prefect" in fresh:
                        on_progress(UNCANCELLABLE)
                    continue
                _end(settings, record, name)
                on_progress(f"{'restarting' if name in old else 'starting'} {name}")
                fresh.append(name)
                attempt(name, partial(start, name))
            for name in fresh:
                if name not in failed:
                    attempt(name, partial(wait, name))
        except BaseException:  # Ctrl-C, or an error of this program: not a server that did not come up
            for name in reversed(fresh):
                _end(settings, record, name)
            _save(settings, record)
            raise
        if register is not None and not {"prefect", "worker"} & failed.keys():
            forget(PREFECT_LOGIN)
            os.environ |= settings.client_environment() | without_proxy(os.environ, settings.local_names)
            register(f"{record.services['prefect'].url}/api", WORK_POOL)
        if failed:
            raise _incomplete(record, failed)
        for name, service in record.services.items():
            on_progress(f"{name} {'is up' if name in fresh else 'was up already'} {service.url}".rstrip())
        if login := settings.credentials():
            token = _ray_folder(settings) / TOKEN
            on_progress(
                f"Prefect, MLflow and the home page require {login[0]} and the password in {settings.root / AUTH}, Ray the token in {token}"
            )
        return record


def down(settings: Settings) -> list[str]:
    """End the recorded services, and Ray heads of commands that died; returns the names of those that ran. Idempotent."""
    with _locked(settings):
        record = settings.services()
        ended = [name for name in ("home", "worker", "ray", "mlflow", "prefect") if _end(settings, record, name)]
        ended += [f"ray/{name}" for name in RayHead.stop_orphans(settings.ray_folder)]
        _save(settings, record)  # the choice of back ends outlives the servers
        return ended


def status(settings: Settings) -> list[ServiceStatus]:
    """Return the state of each recorded service; sends one real request to each that runs."""
    result = []
    for name, service in settings.services().services.items():
        state: Literal["up", "silent", "down"] = "down"
        if service.process.alive():
            state = "up" if _answers(settings, settings.services(), name) else "silent"
        result.append(ServiceStatus(name, state, service.url, service.process.pid, service.process.log))
    return result


# ----------------------------------------------------------------------------------------------- back ends and access


def _settle(settings: Settings, on_progress: Callable[[str], None]) -> tuple[Settings, ServicesRecord]:
    """Check the requested settings, record them, and prepare them; the returned settings read only the record.

    Running servers are never moved while flows use them: a change requires `dora down` first.
    """
    record, chosen, credentials = settings.services(), settings.back_ends, settings.credentials()
    kept = settings.model_copy(update=dict.fromkeys(("postgres", "artifacts", "host", "auth")))
    change = record.back_ends.difference(chosen)
    if credentials != kept.credentials():
        change = ", ".join(filter(None, (change, "auth: another password" if credentials else f"auth: … → {NONE}")))
    running = [name for name, service in record.services.items() if service.process.alive()]
    if change and running:
        raise ConfigError(
            f"the servers run with other settings than requested ({change})", hint="`dora down`, then the same `dora up` again"
        )
    if not is_loopback(check_host(chosen.host)) and credentials is None:
        raise ConfigError(
            f"servers that listen on {chosen.host} need a password",
            hint='export DORA_AUTH="dora:$(openssl rand -hex 16)", keep it, and run the same command again',
        )
    if change:
        on_progress(f"{change}; existing data stays where it is")
    if credentials is None:
        (settings.root / AUTH).unlink(missing_ok=True)
    elif credentials != kept.credentials():
        write_private(settings.root / AUTH, ":".join(credentials))
        _users(settings).unlink(missing_ok=True)  # MLflow would still accept the old password
    if chosen.postgres is None:
        (settings.root / DATABASE_PASSWORD).unlink(missing_ok=True)
    else:
        if settings.postgres is not None and (password := split_postgres(settings.postgres.get_secret_value())[1]):
            write_private(settings.root / DATABASE_PASSWORD, password)
        for name in ensure_databases(chosen.postgres, os.environ | kept.database_secret()):
            on_progress(f"created the database {name}")
    if chosen.artifacts is not None:
        check_writable(chosen.artifacts)
    record = ServicesRecord(services=record.services, back_ends=chosen)
    _save(settings, record)
    return kept, record


def _users(settings: Settings) -> Path:
    """Database of MLflow's users and permissions, created from DORA_AUTH and again when that changes."""
    return settings.root / "mlflow-users.db"


def _remove_half_made(users: Path) -> None:
    """Remove a database of users without one: MLflow was killed while it made it, and could not open it again."""
    if users.exists():
        try:
            with closing(sqlite3.connect(users)) as base:
                if base.execute("select 1 from users limit 1").fetchone():
                    return
        except sqlite3.Error:
            pass
        for side in ("", "-journal", "-wal", "-shm"):
            users.with_name(users.name + side).unlink(missing_ok=True)


def _access(settings: Settings, name: str, port: int) -> dict[str, str]:
    """Environment with which a server requires a password, and answers only browsers that show its own pages (not another site's)."""
    names, credentials = names_of(settings.back_ends.host), settings.credentials()
    own = [f"http://{server}:{port}" for server in names]
    if settings.public_url:
        public = public_address(check_public(settings.public_url), name, own[0])
        own.append(f"{urlsplit(public).scheme}://{urlsplit(public).netloc}")
        names = [*names, str(urlsplit(public).hostname)]
    origins = ",".join(own)
    if name == "prefect":
        access = {"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origins}
        return access | ({"PREFECT_SERVER_API_AUTH_STRING": ":".join(credentials)} if credentials else {})
    access = {
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": origins,
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(f"{server}{any_port}" for server in names for any_port in ("", ":*")),
    }
    if credentials is None:
        return access
    _remove_half_made(_users(settings))
    config = settings.root / "mlflow-auth.ini"
    # Checking a password is slow by design: once a minute is enough for a single serving process.
    database = sqlite_url(_users(settings)).replace("%", "%%")
    write_atomic(config, f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {database}\nauth_cache_ttl_seconds = 60\n")
    return access | {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_USERNAME": credentials[0],
        "MLFLOW_AUTH_ADMIN_PASSWORD": credentials[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
    }


# ---------------------------------------------------------------------------------------------------- one service each


def _start(settings: Settings, name: str, record: ServicesRecord, old: Service | None, on_progress: Callable[[str], None]) -> Service:
    preferred = int(old.url.rsplit(":", 1)[1]) if old and old.url else PORTS.get(name)
    if name == "ray":
        head = RayHead.start(_ray_folder(settings), dashboard_host=settings.back_ends.host, dashboard_port=preferred, outlive=True)
        url, process = head.dashboard_url, head.process
    elif name == "worker":
        client = settings.client_environment() | {"PREFECT_API_URL": f"{record.services['prefect'].url}/api"}
        url, process = "", _spawn(settings, name, _worker_command(), client)
    else:
        host = settings.back_ends.host
        port = free_port(preferred, host)
        url = f"http://{address_of(host)}:{port}"
        if name == "mlflow" and (file := sqlite_file(settings.mlflow_database)) is not None:
            ensure_database(file)
            with suppress(sqlite3.Error):  # MLflow itself reports a damaged database
                for before in follow_home(file, settings.mlflow_artifacts):
                    on_progress(f"MLflow's artifacts follow the home, which was {before}")
        if name == "prefect":
            settings.prefect_home.mkdir(parents=True, exist_ok=True)
        process = _spawn(settings, name, _command(settings, name, port), _environment(settings, name, url, port))
    if url and preferred and not url.endswith(f":{preferred}"):
        on_progress(f"port {preferred} is in use, {name} takes {url.rsplit(':', 1)[1]}")
    return Service(url=url, process=process)


def _stays(settings: Settings, record: ServicesRecord, name: str, old: Mapping[str, Service]) -> bool:
    """Whether it runs and answers. A worker, with its flows, outlives its server by some minutes if that returns at the same address."""
    moved = name == "worker" and ("prefect" not in old or record.services["prefect"].url != old["prefect"].url)
    return not moved and old[name].process.alive() and _answers_within(settings, record, name, SILENT_SECONDS)


def _environment(settings: Settings, name: str, url: str, port: int) -> dict[str, str]:
    """Return the environment of a server of pages. The home page is a client of MLflow, and reads its own access from the settings."""
    if name == "home":
        return settings.client_environment()
    # The pages call the address they were loaded from, whatever proxy or name that is.
    addresses = {"PREFECT_API_URL": f"{url}/api", "PREFECT_UI_API_URL": "/api"} | PAGES
    return addresses | (FEWER_WRITES if settings.back_ends.postgres is None else {}) | _access(settings, name, port)


def _command(settings: Settings, name: str, port: int) -> list[str]:
    """Return the command of a server of pages."""
    host = settings.back_ends.host
    if name == "home":
        return [*python(), "-m", "flows.report.serve", "--host", host, "--port", str(port)]
    return _prefect_command(host, port) if name == "prefect" else _mlflow_command(settings, port)


def _prefect_command(host: str, port: int) -> list[str]:
    return [*python(), "-m", "infra.prefect_server", "server", "start", "--host", host, "--port", str(port), "--analytics-off"]


def _worker_command() -> list[str]:
    return [
        *python(), "-m", "prefect", "worker", "start", "--type", "process",
        "--pool", WORK_POOL, "--name", WORK_POOL, "--install-policy", "never",
    ]  # fmt: skip


def runs_at_a_time() -> int:
    """Return the number of flow runs that this machine runs at a time; further ones stay queued.

    Each is a process, even while it waits for a GPU: seconds of a core to start, and at least 0.1 GB. Prefect's worker has no limit by
    default, and two hundred queued runs would exhaust the machine. This is a limit of the queue (`flows/deployment/deploy.py`), not the
    worker's `--limit`, which would hold back upkeep, too.
    """
    memory = [psutil.virtual_memory().total]
    with suppress(OSError, ValueError):  # not in a container, or in one without a limit, which reads "max"
        memory.append(int(CONTAINER_MEMORY.read_text(encoding="utf-8")))
    return max(4, min(4 * (os.cpu_count() or 1), int(min(memory) / 1e9)))


def _mlflow_command(settings: Settings, port: int) -> list[str]:
    return [
        *python(), "-m", "mlflow", "server", "--host", settings.back_ends.host, "--port", str(port), "--workers", "1",
        "--backend-store-uri", settings.mlflow_database, "--default-artifact-root", settings.artifact_root, "--no-serve-artifacts",
        *(["--app-name", "basic-auth"] if settings.credentials() else []),
    ]  # fmt: skip


def _spawn(settings: Settings, name: str, command: list[str], extra: dict[str, str]) -> RecordedProcess:
    log = settings.log_folder / f"{name}.log"
    log.unlink(missing_ok=True)
    # A worker's flows use the servers that the user has named, with their passwords; the servers themselves use none.
    keep = set[str]()
    if name in ("worker", "home"):
        keep |= MLFLOW_LOGIN if settings.mlflow_uri else set()
    if name == "worker":
        keep |= RAY_LOGIN if settings.ray_address else set()
    # Polling for flow runs is a local request: a run triggered in the UI starts after 2 s instead of 15 s.
    environment = server_environment(settings, {"PREFECT_WORKER_QUERY_SECONDS": "2"}, extra, keep=keep)
    return spawn(name, command, log=log, environment=environment, folder=settings.child_folder)


def _end(settings: Settings, record: ServicesRecord, name: str) -> bool:
    service = record.services.pop(name, None)
    if name == "ray":
        return RayHead.stop_recorded(_ray_folder(settings))
    return bool(service and terminate_tree([service.process], grace=STOP_ORDER[name]))


# ------------------------------------------------------------------------------------------------------- health checks


def _wait(settings: Settings, record: ServicesRecord, name: str, on_progress: Callable[[str], None]) -> None:
    for _ in range(START_ATTEMPTS):
        if _answers_within(settings, record, name, STARTUP_SECONDS):
            return
        process = record.services[name].process
        if not process.lost_its_port():  # lost between its choice and its use: choose again
            break
        record.services[name] = _start(settings, name, record, None, on_progress)
        _save(settings, record)
    what = f"does not answer after {Patience(STARTUP_SECONDS)}" if process.alive() else "ended while starting"
    raise ServiceError(f"{name} {what}", hint=look_at(process), retryable=False)


def _incomplete(record: ServicesRecord, failed: Mapping[str, ServiceError]) -> ServiceError:
    """Return the error of an `up` that is not complete: what is missing and why, and how to go on."""
    why = "; ".join(error.message for error in failed.values())
    logs = "\n".join(error.hint for error in failed.values() if error.hint)
    runs = f"{', '.join(record.services)} {'runs' if len(record.services) == 1 else 'run'}; " if record.services else ""
    again = f"{runs}`dora up` again starts what is missing"
    return ServiceError(why, hint=f"{again}\n{logs}", retryable=False)


def _answers_within(settings: Settings, record: ServicesRecord, name: str, seconds: float) -> bool:
    patience = Patience(seconds)
    while not _answers(settings, record, name):
        if not record.services[name].process.alive() or patience.is_over():
            return False
        time.sleep(0.2)
    return True


def _answers(settings: Settings, record: ServicesRecord, name: str) -> bool:
    """Whether it answers a request of real clients: reading flow runs (broken package versions pass /health), searching experiments."""
    services = record.services
    if name == "worker" and "prefect" not in services:
        return False
    login = settings.credentials()
    requests_of: dict[str, Callable[[], requests.Response]] = {
        "prefect": lambda: _post(f"{services['prefect'].url}/api/flow_runs/filter", {"limit": 1}, login),
        "worker": lambda: _post(f"{services['prefect'].url}/api/work_pools/{WORK_POOL}/workers/filter", {}, login),
        "mlflow": lambda: _post(f"{services['mlflow'].url}/api/2.0/mlflow/experiments/search", {"max_results": 1}, login),
        "ray": lambda: _get(f"{services['ray'].url}/api/version", auth_headers(token_environment(_ray_folder(settings)))),
        "home": lambda: _get(f"{services['home'].url}/health", {}, login),
    }
    try:
        response = requests_of[name]()
        if name == "worker":
            return response.ok and _has_heartbeat(response.json(), services["worker"].process)
        return response.ok and (name == "ray" or services[name].process.listens_on(urlsplit(services[name].url).port or 0))
    except (requests.RequestException, ValueError, FileNotFoundError):
        return False


def _has_heartbeat(workers: list[dict[str, str]], process: RecordedProcess) -> bool:
    """Whether one of the pool's workers has sent a heartbeat since this process started: a killed one stays ONLINE for 90 s."""
    return any(datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() > process.created for worker in workers)


def _post(url: str, body: dict[str, object], login: tuple[str, str] | None) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.post(url, json=body, auth=login, timeout=REQUEST_SECONDS)


def _get(url: str, headers: dict[str, str], login: tuple[str, str] | None = None) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.get(url, headers=headers, auth=login, timeout=REQUEST_SECONDS)


def _ray_folder(settings: Settings) -> Path:
    return settings.ray_folder / "services"


def _save(settings: Settings, record: ServicesRecord) -> None:
    write_atomic(settings.services_file, record.model_dump_json(indent=1) + "\n")


@contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    """Allow one `up` or `down` at a time per home; the kernel frees the lock when the process ends."""
    settings.root.mkdir(parents=True, exist_ok=True)
    with Path(settings.root / "services.lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServiceError(
                f"another `dora up` or `dora down` is running in {settings.root}", hint="wait until it has finished"
            ) from error
        yield
