"""Surroundings of a flow run: from its command, or from the environment of a worker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flows.running.observer import COMMAND, Command, Observer
from flows.running.surroundings import Surroundings
from infra.settings import Settings


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    monkeypatch.setenv("DORA_MLFLOW_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for name in ("DORA_STORE", "PREFECT_API_URL", "DORA_PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)


def test_a_run_of_a_worker_takes_its_environment_and_its_own_observer(tmp_path: Path) -> None:
    observer = Observer()
    here = Surroundings.of_run(observer)
    assert here.on_server and here.observer is observer
    assert here.places == Settings().effective() and here.store.uri == Settings().store_uri
    assert str(tmp_path) in here.store.uri


def test_a_run_of_a_command_takes_its_addresses_and_its_observer() -> None:
    shown, places = Observer(), replace(Settings().effective(), mlflow_uri="http://elsewhere")
    token = COMMAND.set(Command(places, shown))
    try:
        here = Surroundings.of_run(Observer())
    finally:
        COMMAND.reset(token)
    assert not here.on_server and here.observer is shown and here.places.mlflow_uri == "http://elsewhere"
