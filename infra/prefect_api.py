"""The Prefect API of a command without servers: one process, this command's own, without a user interface.

Prefect would start such a process itself. This one differs in three ways: it boots while this process still imports and plans
(6 s of the 8 s an idle realignment takes), it leads a separate session, so that Ctrl-C reaches the flow first and the flow
can still report its state, and it is recorded, so that the next command ends it if this one was killed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import requests

from dora_core.errors import ServiceError
from dora_core.strict_model import StrictModel
from infra.child_environment import python
from infra.ports import free_port, release
from infra.processes import RecordedProcess, spawn, terminate_tree
from infra.settings import Settings, server_environment
from infra.starting import Patience, look_at
from infra.store.store import write_atomic

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

STARTUP_SECONDS = 120.0
"""The first start on a machine creates the database: 20 s on a busy laptop."""
SILENT_SECONDS = 30.0
"""Time-out of a command's first request; with the retries of Prefect's own client, a server that hangs would take 7 minutes."""


class _Record(StrictModel):
    """``<home>/prefect/apis/<pid of the owner>.json``."""

    api: RecordedProcess
    owner: RecordedProcess


@contextmanager
def own_prefect_api(settings: Settings) -> Iterator[Callable[[], None]]:
    """Start the API, point this process's Prefect at it, and end it at exit. Yields a function that waits until it answers.

    Raises (from that function):
        ServiceError: it does not come up; the tail of its log is the hint.
    """
    records = settings.prefect_home / "apis"
    records.mkdir(parents=True, exist_ok=True)
    _end_orphans(records)
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    os.environ["PREFECT_API_URL"] = url
    start = ["server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui", "--analytics-off"]
    command = [*python(), "-m", "infra.prefect_server", *start]
    environment = server_environment(settings, {"PREFECT_API_URL": url}, _LEAN)
    log = settings.log_folder / "prefect-api.log"
    api = spawn("prefect api", command, log=log, environment=environment, folder=settings.child_folder)
    record = records / f"{os.getpid()}.json"
    write_atomic(record, _Record(api=api, owner=RecordedProcess.current()).model_dump_json() + "\n")
    try:
        yield lambda: _wait(url, api)
    finally:
        _flush_threads()
        terminate_tree([api], grace=5.0)
        release(port)
        record.unlink(missing_ok=True)
        os.environ.pop("PREFECT_API_URL", None)


# Nothing is scheduled, late or cancelled from outside during one command; what remains records the task runs.
_LEAN = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}


def _flush_threads() -> None:
    """Flush Prefect's log and task-state threads; otherwise they send at interpreter exit, when this API has ended."""
    if "prefect.events.worker" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        APILogWorker.drain_all(timeout=5)
        EventsWorker.drain_all(timeout=5)


def _wait(url: str, api: RecordedProcess) -> None:
    patience = Patience(STARTUP_SECONDS)
    with requests.Session() as session:
        session.trust_env = False
        while not patience.is_over() and api.alive():
            try:
                # A real read: package versions that do not fit together pass /health and fail here.
                if session.post(f"{url}/flow_runs/filter", json={"limit": 1}, timeout=5).ok:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.1)
    what = f"does not answer after {patience}" if api.alive() else "ended while starting"
    raise ServiceError(f"the Prefect API {what}", hint=look_at(api), retryable=False)


def _end_orphans(records: Path) -> None:
    for path in records.glob("*.json"):
        record = _Record.model_validate_json(path.read_text(encoding="utf-8"))
        if not record.owner.alive():
            terminate_tree([record.api], grace=5.0)
            path.unlink(missing_ok=True)


def check_answers(api_url: str) -> None:
    """Send a server one request.

    Raises:
        ServiceError: it does not answer, or refuses the credentials.
    """
    with connected(api_url):
        pass


@contextmanager
def connected(api_url: str) -> Iterator[SyncPrefectClient]:
    """Give a client of a server that answers; its failures become :class:`ServiceError`.

    Raises:
        ServiceError: it does not answer, or refuses the credentials.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    once = {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: SILENT_SECONDS}
    try:
        with temporary_settings({PREFECT_API_URL: api_url}):
            with temporary_settings(once), get_client(sync_client=True) as client:
                client.hello()
            with get_client(sync_client=True) as client:
                yield client
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ServiceError(
                f"Prefect at {api_url} refuses us ({status})",
                hint="set PREFECT_API_AUTH_STRING to the server's user:password",
                retryable=False,
            ) from error
        reason = error.response.text.strip()[:500]
        raise ServiceError(f"Prefect at {api_url} answered {status}: {reason}", retryable=status >= 500) from error
    except httpx.RequestError as error:
        raise ServiceError(
            f"Prefect at {api_url} does not answer: {type(error).__name__}: {error}",
            hint="`dora up` starts it, again if it hangs; or check DORA_PREFECT_API_URL",
        ) from error
