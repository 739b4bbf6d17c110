"""Addresses without passwords, passwords in private files, and the recorded choice of back ends."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dora_core.errors import ConfigError, ServiceError, StoreError
from infra import back_ends, services
from infra.back_ends import BackEnds, check_auth, connect, ensure_databases, split_postgres, without_credentials, write_private
from infra.processes import RecordedProcess
from infra.settings import Service, ServicesRecord, Settings, tool_environment
from infra.store.store import Store, check_writable
from tests.postgres_server import PASSWORD, postgres_server
from tests.s3_server import BUCKET, S3Server, s3_server

SERVER = "postgresql://dora@db:5433/postgres"
AUTH = "ann:twelve-letters"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PGPASSWORD"):
        monkeypatch.delenv(name, raising=False)
    return Settings(home=tmp_path)


def test_a_password_is_taken_out_of_the_address() -> None:
    assert split_postgres("postgresql://dora:a%2Fb%40c@db:5433") == (SERVER, "a/b@c")
    assert split_postgres("postgresql://dora@db/setup") == ("postgresql://dora@db:5432/setup", None)
    assert split_postgres("postgresql://dora@[::1]:5433") == ("postgresql://dora@[::1]:5433/postgres", None)
    assert BackEnds(postgres=SERVER).database("asyncpg", "prefect") == "postgresql+asyncpg://dora@db:5433/prefect"


@pytest.mark.parametrize(
    "url",
    ["mysql://u:secret@db", "postgresql://db", "postgresql://u:secret@db:port", "postgresql://u:secret@db?sslmode=require", ""],
)
def test_another_url_is_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        split_postgres(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://u:p@host:5000/api failed", "at http://host:5000/api failed"),
        ("postgresql+psycopg://u:p@ss@db/x", "postgresql+psycopg://db/x"),  # a raw @ in the password
        ("s3://key:secret@bucket/a and //u@h", "s3://bucket/a and //h"),
        ("http://host/a@b?c=d@e", "http://host/a@b?c=d@e"),
    ],
)
def test_credentials_disappear_from_texts(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


@pytest.mark.parametrize(
    "text", ["ann", "ann:short", "a nn:twelve-letters", "ann:twelve letters", ":twelve-letters", "ann:zwölf-buchstaben"]
)
def test_a_weak_or_malformed_password_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="12 to 128") as refused:
        check_auth(text)
    assert text not in str(refused.value)


def test_private_files_are_private_from_their_first_byte(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_addresses_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert back_ends.check_host("127.0.0.1") and back_ends.check_host("localhost") and back_ends.check_host("0.0.0.0")
    with pytest.raises(ConfigError, match=r"'192\.0\.2\.7' is not an IPv4 address of this machine"):
        back_ends.check_host("192.0.2.7")
    assert back_ends.names_of("127.0.0.1") == ["127.0.0.1", "localhost"]
    assert {"localhost", "127.0.0.1"} < set(back_ends.names_of("0.0.0.0"))


def test_a_store_named_with_credentials_is_refused() -> None:
    for open_it in (Store, check_writable):
        with pytest.raises(StoreError, match="holds credentials") as refused:
            open_it("s3://key:secret@bucket/prefix")
        assert "secret" not in str(refused.value) and "AWS_SECRET_ACCESS_KEY" in refused.value.hint


# ------------------------------------------------------------------------------------------------- the recorded choice


def test_up_remembers_the_choice_and_its_secrets_in_private_files(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "ensure_databases", lambda server, environment: ["mlflow"])
    asked = Settings(home=settings.home, postgres="postgresql://dora:secret%3A@db:5433", auth=AUTH)
    said: list[str] = []
    kept, record = services._settle(asked, said.append)
    assert record.back_ends == BackEnds(postgres=SERVER)
    assert any("postgres: none → " + SERVER in line for line in said) and "created the database mlflow" in said

    assert "secret" not in settings.services_file.read_text() and "twelve" not in settings.services_file.read_text()
    for name, content in (("postgres-password", "secret:"), ("auth", AUTH)):
        assert (settings.root / name).read_text() == content and stat.S_IMODE((settings.root / name).stat().st_mode) == 0o600

    for later in (kept, settings):  # without any option or variable
        assert later.back_ends.postgres == SERVER and later.credentials() == ("ann", "twelve-letters")
        assert tool_environment(later)["PGPASSWORD"] == "secret:"

    services.down(settings)
    assert settings.back_ends.postgres == SERVER

    services._settle(Settings(home=settings.home, postgres="none", auth="none"), said.append)
    assert settings.back_ends == BackEnds() and settings.credentials() is None
    assert not (settings.root / "postgres-password").exists() and not (settings.root / "auth").exists()


def test_running_servers_are_not_moved(settings: Settings) -> None:
    me = Service(url="http://127.0.0.1:1", process=RecordedProcess.current())
    settings.services_file.write_text(ServicesRecord(services={"prefect": me}).model_dump_json())
    for asked, change in (
        (Settings(home=settings.home, artifacts=f"s3://{BUCKET}/a"), f"artifacts: none → s3://{BUCKET}/a"),
        (Settings(home=settings.home, auth=AUTH), "auth: another password"),
        (Settings(home=settings.home, host="0.0.0.0"), "host: 127.0.0.1 → 0.0.0.0"),
    ):
        with pytest.raises(ConfigError, match="the servers run with other settings than requested") as refused:
            services._settle(asked, print)
        assert change in refused.value.message and "dora down" in refused.value.hint
    assert settings.back_ends == BackEnds() and settings.credentials() is None


def test_the_network_needs_a_password(settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"listen on 0\.0\.0\.0 need a password") as refused:
        services.up(Settings(home=settings.home, host="0.0.0.0"))
    assert "DORA_AUTH" in refused.value.hint and not settings.services_file.exists()


def test_no_head_is_started_beside_a_given_cluster(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def start(*arguments: Any) -> Service:
        started.append(arguments[1])
        return Service(url="", process=RecordedProcess.current())

    monkeypatch.setattr(services, "_start", start)
    monkeypatch.setattr(services, "_wait", lambda *_: None)
    services.up(Settings(home=settings.home, ray_address="http://cluster:8265"))
    assert started == ["prefect", "mlflow", "worker", "home"]


# --------------------------------------------------------------------------------------------------- a real PostgreSQL


@pytest.mark.component
def test_databases_are_made_once_and_a_refusal_says_what_to_do() -> None:
    with postgres_server() as running:
        server, password = split_postgres(running.url)
        assert password == PASSWORD
        secret = {"PGPASSWORD": PASSWORD}
        with connect(server, secret) as admin:
            admin.execute("create role guest login password 'guest'")
        guest = server.replace("dora@", "guest@")
        with pytest.raises(ServiceError, match="guest may not create the databases prefect and mlflow") as refused:
            ensure_databases(guest, {"PGPASSWORD": "guest"})
        assert 'create database mlflow owner "guest";' in refused.value.hint

        assert ensure_databases(server, secret) == ["prefect", "mlflow"] and ensure_databases(server, secret) == []
        assert ensure_databases(guest, {"PGPASSWORD": "guest"}) == []
        with connect(server, secret, "mlflow") as connection:
            assert connection.execute("select current_database()").fetchall() == [("mlflow",)]
        with pytest.raises(ServiceError, match=r"refuses the connection: .*password authentication failed") as refused:
            connect(server, {"PGPASSWORD": "wrong-canary"})
        assert "canary" not in str(refused.value)
    with pytest.raises(ServiceError, match="refuses the connection"):
        connect(server, secret)


# ------------------------------------------------------------------------------------------------------ an S3 service


@pytest.fixture(scope="module")
def s3() -> S3Server:  # type: ignore[misc]
    with s3_server() as server:
        yield server


STORE_ON_S3 = """
import json, sys
from infra.store.store import Store, check_writable
check_writable(sys.argv[1])
store = Store(sys.argv[1])
folder = store.folder("ingest", "a" * 64)
(folder.path / "data").mkdir()
(folder.path / "data" / "table.bin").write_bytes(b"12345" * 2_500_000)  # more than one part of a multipart upload
store.mark_done(folder, {"digest": "a" * 64, "rows": 1})
"""


def test_the_store_on_s3_with_nothing_but_the_standard_variables(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines: two processes with a cache each."""
    uri = f"s3://{BUCKET}/machines"  # other tests use the same server
    environment = os.environ | s3.environment | {"DORA_CACHE": str(tmp_path / "one")}
    subprocess.run([sys.executable, "-c", STORE_ON_S3, uri], check=True, env=environment, timeout=60)
    objects = s3.objects("machines/")
    assert len(objects[f"machines/ingest/{'a' * 64}/data/table.bin"]) == 12_500_000
    assert not [key for key in objects if "doctor" in key]

    for name, value in (s3.environment | {"DORA_CACHE": str(tmp_path / "two")}).items():
        monkeypatch.setenv(name, value)
    store = Store(uri)
    assert store.is_done("ingest", "a" * 64) and store.list("ingest") == ["a" * 64] and store.list("runs") == []
    assert (store.fetch("ingest", "a" * 64) / "data" / "table.bin").stat().st_size == 12_500_000
    assert json.loads(objects[f"machines/ingest/{'a' * 64}/result.json"])["rows"] == 1
    assert stat.S_IMODE((tmp_path / "two" / f"dora-cache-{os.getuid()}").stat().st_mode) == 0o700


def test_a_missing_bucket_is_named(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match="s3://no-such-bucket/x is not writable") as refused:
        check_writable("s3://no-such-bucket/x")
    assert "AWS_ENDPOINT_URL" in refused.value.hint


def test_without_credentials() -> None:
    assert without_credentials("at https://me:pw@host:5000/x failed") == "at https://host:5000/x failed"
