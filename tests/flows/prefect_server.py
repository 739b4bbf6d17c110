"""A real Prefect API for a module of tests: one server process with an empty database, no Ray."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
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
    """Address of a Prefect API with an empty database."""
    home = tmp_path_factory.mktemp("prefect")
    (home / "prefect").mkdir()
    shutil.copy(empty_prefect_database, home / "prefect" / "prefect.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DORA_HOME", str(home))
        for name, value in tool_environment(Settings()).items():
            patch.setenv(name, value)
        with own_prefect_api(Settings()) as wait:
            wait()
            yield os.environ["PREFECT_API_URL"]


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
