"""A real Prefect API for a module of tests: one server process with an empty database, no Ray."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.deployment import deploy
from flows.deployment.deploy import Deployment
from infra.prefect_api import own_prefect_api
from infra.settings import Settings, tool_environment

PATIENCE = 60.0


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, empty_prefect_database: Path) -> Iterator[str]:
    """Address of a Prefect API with an empty database. It starts in the surroundings of another project, of which nothing may reach it."""
    home = tmp_path_factory.mktemp("prefect")
    (home / "prefect").mkdir()
    shutil.copy(empty_prefect_database, home / "prefect" / "prefect.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DORA_HOME", str(home))
        for name, value in tool_environment(Settings()).items():
            patch.setenv(name, value)
        with ExitStack() as running:
            with surroundings_of_another_project(tmp_path_factory.mktemp("another")):
                wait = running.enter_context(own_prefect_api(Settings()))
            wait()
            yield os.environ["PREFECT_API_URL"]


@contextmanager
def surroundings_of_another_project(folder: Path) -> Iterator[None]:
    """A working folder and variables that would break a server: a file named like a package, passwords, another database, a proxy."""
    (folder / "prefect.py").write_text("raise SystemExit('the file of the user ran')\n")
    (folder / ".env").write_text("PREFECT_SERVER_API_AUTH_STRING=a:b\nPREFECT_SERVER_API_BASE_PATH=/elsewhere\n")
    (folder / "prefect.toml").write_text('[server.api]\nauth_string = "c:d"\n')
    theirs = {
        "PREFECT_SERVER_API_AUTH_STRING": "e:f",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/theirs.db",
        "PREFECT_PROFILES_PATH": str(folder / "profiles.toml"),
        "HTTP_PROXY": "http://127.0.0.1:9",
        "PYTHONPATH": f"{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in theirs.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def client(api: str, tmp_path: Path, mlflow_sqlite: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    monkeypatch.setenv("PREFECT_API_URL", api)
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    monkeypatch.setenv("DORA_MLFLOW_URI", mlflow_sqlite)
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[Deployment]:
    """The declaration, to be changed by a test."""
    entries = [entry for entry in deploy.declared() if entry.name in ("realign", "realign-nightly")]
    monkeypatch.setattr(deploy, "declared", lambda home=None: entries)
    return entries


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)
    return value
