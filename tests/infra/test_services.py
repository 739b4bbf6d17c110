"""`up`, `status` and `down` with the real servers."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import requests

from dora_core.errors import ServiceError
from infra import services
from infra.databases import sqlite_file
from infra.ports import free_port, release
from infra.processes import process_tree, terminate_tree
from infra.settings import ServicesRecord, Settings
from infra.starting import Patience
from tests.infra.test_processes import running

LOCKED_SECONDS = 3.0
EVIL = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in services.PORTS:  # the default ports may be in use on this machine
        monkeypatch.setitem(services.PORTS, name, free_port())
    return Settings(home=tmp_path)


@pytest.fixture
def ended(settings: Settings) -> Iterator[None]:
    yield
    services.down(settings)


def only_loopback(record: ServicesRecord) -> bool:
    """Whether all servers listen on loopback only, every port of Ray's with them."""
    ours = {p.pid for service in record.services.values() for p in process_tree([service.process])}
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in ours]
    assert len(listening) > 8, "Ray alone has as many"
    return {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}


def test_down_without_up_is_a_no_op(settings: Settings) -> None:
    assert services.down(settings) == [] and services.status(settings) == []


def test_users_that_were_made_by_half_are_made_anew(settings: Settings) -> None:
    """MLflow enters its administrator right after the migrations: a database without a user was left by a killed server."""
    users = services._users(settings)
    for statement, stays in (("create table t (x)", False), ("create table users (id int)", False), (None, False)):
        with closing(sqlite3.connect(users)) as base:
            base.execute(statement or "create table x (y)")
        if statement is None:
            users.write_bytes(b"torn")
        services._remove_half_made(users)
        assert users.exists() is stays
    with closing(sqlite3.connect(users)) as base, base:
        base.execute("create table users (id int)")
        base.execute("insert into users values (1)")
    services._remove_half_made(users)
    assert users.exists()


@pytest.mark.parametrize(("container", "runs"), [("6000000000", 6), ("max", 16), ("1000000000", 4)])
def test_as_many_runs_start_as_cores_and_memory_bear(container: str, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "CONTAINER_MEMORY", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text(f"{container}\n")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(services.psutil, "virtual_memory", lambda: SimpleNamespace(total=64e9))
    assert services.runs_at_a_time() == runs


@pytest.mark.component
def test_up_keeps_what_runs_completes_and_repairs_it_and_down_ends_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, ended: None
) -> None:
    """Every step goes on from the servers of the one before: to start them all takes long."""
    registered, said = list[tuple[str, str]](), list[str]()
    damaged = settings.root / "mlflow.db"
    damaged.write_text("this is not a database")
    with pytest.raises(ServiceError) as caught:
        services.up(settings)
    assert caught.value.message == "mlflow ended while starting"
    go_on, why, log = caught.value.hint.splitlines()
    assert go_on == "prefect, ray, worker, home run; `dora up` again starts what is missing"
    assert why.endswith("file is not a database") and log == f"log: {settings.log_folder / 'mlflow.log'}" and Path(log[5:]).is_file()
    before = settings.services().services
    assert {s.name: s.state for s in services.status(settings)} == dict.fromkeys(("prefect", "ray", "worker", "home"), "up")

    damaged.unlink()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        monkeypatch.setitem(services.PORTS, "mlflow", taken)
        look, late = services.free_port, [taken]  # free when it was chosen, taken before MLflow uses it
        monkeypatch.setattr(services, "free_port", lambda port, host: late.pop() if port == taken and late else look(port, host))
        record = services.up(settings, on_progress=said.append, register=lambda api, pool: registered.append((api, pool)))
    assert {name: record.services[name] for name in before} == before and record.services["mlflow"].process.alive()
    assert any(line.startswith(f"port {taken} is in use, mlflow takes ") for line in said)
    api = f"{record.services['prefect'].url}/api"
    assert registered == [(api, "dora")]
    assert requests.get(f"{api}/work_pools/dora", timeout=5).json()["type"] == "process"
    assert {s.name: s.state for s in services.status(settings)} == dict.fromkeys(("prefect", "mlflow", "ray", "worker", "home"), "up")

    assert only_loopback(record) and not requests.options(f"{api}/flow_runs/filter", headers=EVIL, timeout=5).ok
    own = EVIL | {"Origin": record.services["prefect"].url.replace("127.0.0.1", "localhost")}
    assert requests.options(f"{api}/flow_runs/filter", headers=own, timeout=5).ok

    places = settings.effective()
    assert (places.prefect_api_url, places.mlflow_uri) == (api, record.services["mlflow"].url)
    assert places.ray_dashboard == record.services["ray"].url and places.ray_environment["RAY_AUTH_MODE"] == "token"

    server = psutil.Process(record.services["mlflow"].process.pid)
    server.kill()
    server.wait(10)
    again = services.up(settings)
    assert again.services["mlflow"].process != record.services["mlflow"].process
    assert again.services["mlflow"].url == record.services["mlflow"].url  # links stay valid
    assert {n: s for n, s in again.services.items() if n != "mlflow"} == {n: s for n, s in record.services.items() if n != "mlflow"}

    tree = process_tree([s.process for s in again.services.values()])
    assert set(services.down(settings)) == {"home", "worker", "ray", "mlflow", "prefect"}
    assert running(tree) == [] and services.down(settings) == []
    assert settings.effective().prefect_api_url is None


@pytest.mark.component
def test_an_edit_of_a_schedule_waits_while_sqlite_is_locked(settings: Settings) -> None:
    """Started as Prefect starts it, the server answers 503 at once."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings.prefect_home.mkdir(parents=True)
    command, environment = services._prefect_command("127.0.0.1", port), services._environment(settings, "prefect", url, port)
    server = services._spawn(settings, "prefect", command, environment)

    def ask(method: str, path: str, body: dict[str, object] | None = None) -> requests.Response:
        return requests.request(method, f"{url}/api{path}", json=body, timeout=300)

    try:
        patience = Patience(services.STARTUP_SECONDS)
        while not patience.is_over() and server.alive():
            with suppress(requests.ConnectionError):
                if ask("GET", "/health").ok:
                    break
            time.sleep(0.2)
        schedule = {"schedule": {"cron": "0 2 * * *", "timezone": "UTC"}, "active": False}
        flow = ask("POST", "/flows/", {"name": "f"}).json()["id"]
        deployment = ask("POST", "/deployments/", {"name": "d", "flow_id": flow, "schedules": [schedule]}).json()
        [there] = deployment["schedules"]
        file = sqlite_file(settings.prefect_database)
        assert file is not None
        with closing(sqlite3.connect(file, isolation_level=None, timeout=60, check_same_thread=False)) as other:
            other.execute("begin immediate")
            ended = threading.Event()

            def end() -> None:
                ended.set()
                other.execute("rollback")

            timer = threading.Timer(LOCKED_SECONDS, end)
            timer.start()
            answer = ask("PATCH", f"/deployments/{deployment['id']}/schedules/{there['id']}", {"active": True})
            assert ended.is_set(), (answer.status_code, answer.elapsed, answer.text)
            timer.join()
        assert answer.status_code == 204, answer.text
        assert ask("GET", f"/deployments/{deployment['id']}").json()["schedules"][0]["active"] is True
    finally:
        terminate_tree([server])
        release(port)


def test_settings_of_prefects_server_are_known_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A renamed setting would be ignored in silence: each of ours changes a value, and the pages load nothing from elsewhere."""
    from prefect.settings import Settings as PrefectSettings

    def values(prefix: str, tree: dict[str, object]) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, value in tree.items():
            found |= values(f"{prefix}_{name}", value) if isinstance(value, dict) else {f"{prefix}_{name}".upper(): value}
        return found

    before = values("prefect_server", PrefectSettings().server.model_dump(mode="json"))
    given = services.PAGES | services.FEWER_WRITES
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    after = values("prefect_server", PrefectSettings().server.model_dump(mode="json"))
    assert {name for name in before if before[name] != after[name]} == set(given)


def test_a_server_answers_pages_under_its_public_address(settings: Settings) -> None:
    public = settings.model_copy(update={"public_url": "https://{service}.example.org"})
    assert "https://prefect.example.org" in services._access(public, "prefect", 4200)["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    mlflow = services._access(public, "mlflow", 5000)
    assert "mlflow.example.org" in mlflow["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert "https://mlflow.example.org" in mlflow["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
