"""A private Ray head on this machine, with token authentication and a record of its processes.

``ray start --head --block`` runs in its own session, so all of Ray is one process tree. With the record ``ray.json`` any later
program can end exactly that tree (``ray stop`` would end every Ray of the machine). Several heads may run side by side: each takes free
ports and keeps its session in its own temporary folder, whose path is short because a Unix socket's path has at most 107 bytes.

Loopback: the node is 127.0.0.1, so Ray's ports (GCS, raylet, agents, workers, metrics) are closed to other machines, and a laptop may
change networks during a run. Ray would rewrite that address to the network's, except in its mode of one machine, which it has for other
systems; the dashboard and the Jobs API alone listen on another address if asked to (``dora up --host``), and require the token.

Cost, on 2 idle cores: 4 s until the Jobs API answers, 2 s more for its first job, 0.9 GB proportional memory in 20 processes. A busy
machine gets more time (``infra/starting.py``), also in Ray's own waits (``infra/ray_start.py``); a head that ends while starting is
started again.
Left out, because they cost start-up seconds and are not needed: the autoscaler's monitor, the client server.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from dora_core import plugins
from dora_core.environment import variable
from dora_core.errors import ServiceError
from dora_core.strict_model import StrictModel
from infra.back_ends import CONTROL_SECRETS, LOOPBACK, address_of
from infra.child_environment import child_environment, python
from infra.ports import free_port, reserved_until_bound
from infra.processes import RecordedProcess, process_tree, spawn, terminate_tree
from infra.ray_start import waits
from infra.starting import LONGEST, Patience, look_at
from infra.store.store import write_atomic

RECORD = "ray.json"
TOKEN = "ray-token"
STARTUP_SECONDS = 90.0
"""Time for a start on a quiet machine."""
START_ATTEMPTS = 3
JOB_STOP_SECONDS = 20
"""Time for a stopped job to write its checkpoint before SIGKILL."""

HEAD_ENVIRONMENT = {
    "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_SECONDS),
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # jobs are stopped before the head; the default waits up to 30 s
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report() costs one such interval; the default is 1.9
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # one machine: Ray keeps 127.0.0.1, and its ports listen there only
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's next default; unset, every worker warns about it
}


class _Record(StrictModel):
    """``ray.json``. ``owner`` is the command that uses the head; None for the head of ``dora up``, which outlives its command."""

    head: RecordedProcess
    owner: RecordedProcess | None
    dashboard_url: str
    gcs_address: str
    temp_dir: str


class RayHead:
    """A running head; make one with :meth:`start`, find one again with :meth:`attach`. A context manager that stops it."""

    def __init__(self, folder: Path, record: _Record):
        self.folder, self._record = folder, record

    @property
    def dashboard_url(self) -> str:
        """``http://127.0.0.1:<port>``, or another address of this machine: dashboard and Jobs API."""
        return self._record.dashboard_url

    @property
    def gcs_address(self) -> str:
        """``host:port`` for ``ray.init(address=…)``."""
        return self._record.gcs_address

    @property
    def process(self) -> RecordedProcess:
        return self._record.head

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        num_cpus: int | None = None,
        num_gpus: int | None = None,
        dashboard_host: str = LOOPBACK,
        dashboard_port: int | None = None,
        outlive: bool = False,
    ) -> RayHead:
        """Start a head and wait until its Jobs API answers.

        Args:
            folder: for record, token and log; one head per folder. A head left there by a dead owner is ended first.
            num_cpus, num_gpus: resources that Ray schedules; None: as many as it finds.
            dashboard_host: address the dashboard and the Jobs API listen on.
            dashboard_port: preferred port; None or taken: any free one.
            outlive: the head stays after this process (``dora up``).

        Raises:
            ServiceError: another live command owns a head in ``folder``, or Ray does not come up; the hint names its log.
        """
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if (old := _read(folder)) and _in_use(old):
            raise ServiceError(
                f"a Ray head already runs for {folder} (pid {old.head.pid})",
                hint="wait for the other command, or run `dora down` if it was started by `dora up`",
                retryable=False,
            )
        cls.stop_recorded(folder)
        _ensure_token(folder / TOKEN)
        for attempts_left in reversed(range(START_ATTEMPTS)):
            with reserved_until_bound():
                head = cls._launch(folder, num_cpus, num_gpus, dashboard_host, dashboard_port, outlive)
                try:
                    head._wait_until_ready()
                    return head
                except BaseException as error:
                    has_ended = not head.alive()
                    head.stop()
                    # It lost a port to another process between its choice and its use, or a wait of Ray's own was too short.
                    if not (attempts_left and isinstance(error, ServiceError) and has_ended):
                        raise
        raise AssertionError("the last attempt returns or raises")

    @classmethod
    def _launch(
        cls, folder: Path, num_cpus: int | None, num_gpus: int | None, dashboard_host: str, dashboard_port: int | None, outlive: bool
    ) -> RayHead:
        temp_dir = _short_temp_dir()
        dashboard, gcs = free_port(dashboard_port, dashboard_host), free_port()
        ports = [free_port() for _ in range(4)]  # fixed ones: the raylet would wait until each agent has chosen its own
        command = [
            *python(), "-m", "ray.scripts.scripts", "start", "--head", "--block", "--no-monitor", "--disable-usage-stats",
            f"--node-ip-address={LOOPBACK}", f"--port={gcs}", f"--dashboard-agent-listen-port={ports[0]}",
            f"--dashboard-agent-grpc-port={ports[1]}", f"--metrics-export-port={ports[2]}", f"--runtime-env-agent-port={ports[3]}",
            "--min-worker-port=0", "--max-worker-port=0",
            "--include-dashboard=true", f"--dashboard-host={dashboard_host}", f"--dashboard-port={dashboard}",
            f"--temp-dir={temp_dir}", f"--object-store-memory={_object_store_bytes()}", "--log-style=record", "--log-color=false",
            *([] if num_cpus is None else [f"--num-cpus={num_cpus}"]),
            *([] if num_gpus is None else [f"--num-gpus={num_gpus}"]),
        ]  # fmt: skip
        # Ray's dashboard and killed workers leave files in the temporary folder; these are deleted with the head. The cache, which later
        # jobs read again, stays outside.
        places = {"TMPDIR": str(temp_dir / "tmp"), "DORA_CACHE": str(Path(variable("DORA_CACHE") or tempfile.gettempdir()).absolute())}
        own = (plugins.environment(), HEAD_ENVIRONMENT, waits(STARTUP_SECONDS * LONGEST), token_environment(folder), places)
        environment = child_environment(*own, excluded=CONTROL_SECRETS, hosts={address_of(dashboard_host)})
        log = folder / "ray.log"
        log.unlink(missing_ok=True)
        # Jobs inherit this working directory: an empty one, so that a `tasks/` folder in the user's directory cannot shadow the package.
        process = spawn("ray head", command, log=log, environment=environment, folder=temp_dir)
        owner = None if outlive else RecordedProcess.current()
        url = f"http://{address_of(dashboard_host)}:{dashboard}"
        record = _Record(head=process, owner=owner, dashboard_url=url, gcs_address=f"{LOOPBACK}:{gcs}", temp_dir=str(temp_dir))
        write_atomic(folder / RECORD, record.model_dump_json(indent=1) + "\n")
        return cls(folder, record)

    @classmethod
    def attach(cls, folder: Path) -> RayHead | None:
        """Return the recorded head of ``folder`` if it still runs."""
        record = _read(folder.resolve())
        return cls(folder.resolve(), record) if record and record.head.alive() else None

    @classmethod
    def stop_recorded(cls, folder: Path) -> bool:
        """End the head recorded in ``folder``, also one of another command; True if any of its processes ran. Idempotent."""
        record = _read(folder.resolve())
        if record is None:
            return False
        ran = bool(process_tree([record.head]))
        cls(folder.resolve(), record).stop()
        return ran

    @classmethod
    def stop_orphans(cls, parent: Path) -> list[str]:
        """End every head recorded in a folder directly below ``parent`` whose owner is gone; returns the folders' names."""
        orphans = [
            path.parent for path in sorted(parent.glob(f"*/{RECORD}")) if (r := _read(path.parent)) and r.owner and not r.owner.alive()
        ]
        return [folder.name for folder in orphans if cls.stop_recorded(folder)]

    def environment(self) -> dict[str, str]:
        """Environment of this head's clients: RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH."""
        return token_environment(self.folder)

    def alive(self) -> bool:
        return self.process.alive()

    def stop(self) -> None:
        """End this head's processes and delete its temporary folder and record; idempotent. The token is kept for reuse."""
        terminate_tree([self.process], grace=8.0)
        shutil.rmtree(self._record.temp_dir, ignore_errors=True)
        if (current := _read(self.folder)) and current.head == self.process:
            (self.folder / RECORD).unlink(missing_ok=True)

    def __enter__(self) -> RayHead:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_ready(self) -> None:
        import requests

        session = requests.Session()
        session.trust_env = False
        headers = auth_headers(self.environment())
        patience = Patience(STARTUP_SECONDS)
        while not patience.is_over() and self.alive():
            try:
                # The dashboard answers before the node is up; `ray start` writes this file when it is.
                started = (Path(self._record.temp_dir) / "ray_current_cluster").exists()
                if started and session.get(f"{self.dashboard_url}/api/version", headers=headers, timeout=5).ok:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.1)
        what = f"is not ready after {patience}" if self.alive() else "ended while starting"
        raise ServiceError(f"the Ray head {what}", hint=look_at(self.process))


def auth_headers(environment: Mapping[str, str]) -> dict[str, str]:
    """Make HTTP headers for Ray's dashboard from RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN); empty without token mode."""
    if environment.get("RAY_AUTH_MODE") != "token":
        return {}
    path = Path(variable("RAY_AUTH_TOKEN_PATH", environment) or "~/.ray/auth_token")
    token = variable("RAY_AUTH_TOKEN", environment) or path.expanduser().read_text(encoding="utf-8")
    return {"Authorization": f"Bearer {token.strip()}"}


def token_environment(folder: Path) -> dict[str, str]:
    """Environment variables from which Ray's libraries read the token of the head in ``folder``."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / TOKEN)}


def _read(folder: Path) -> _Record | None:
    try:
        return _Record.model_validate(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _in_use(record: _Record) -> bool:
    return record.head.alive() and (record.owner is None or record.owner.alive())


def _ensure_token(path: Path) -> None:
    """Create a 256-bit token readable by its owner only; an existing one is reused so that running clients stay valid."""
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    path.chmod(0o600)


def _short_temp_dir() -> Path:
    # Ray appends about 64 bytes (session_…/sockets/plasma_store) and a socket's path may have 107.
    try:
        base = tempfile.gettempdir()
        made = Path(tempfile.mkdtemp(prefix="dora-ray-", dir=base if len(base) <= 22 else "/tmp"))
        (made / "tmp").mkdir()
    except OSError as error:  # read-only, full, or no folder at all
        raise ServiceError(
            f"Ray cannot use the temporary folder: {error}",
            hint="make space in it, or set TMPDIR to a folder whose path has at most 22 characters",
            retryable=False,
        ) from error
    return made


def _object_store_bytes() -> int:
    """Return 2 % of memory within 200 MB … 4 GB: specs, blocks of shards and collective set-up pass through it, never datasets."""
    return int(min(max(psutil.virtual_memory().total * 0.02, 200e6), 4e9))
