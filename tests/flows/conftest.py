from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dora_core.testbed.mixture import Testbed, TestbedConfig
from tests.flows.dora import Dora
from tests.flows.killed_runs import mlflow_uri, ray, settings  # noqa: F401  # fixtures
from tests.flows.prefect_server import api, client, entries  # noqa: F401  # fixtures


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small known mixture as Parquet: 40 prompts, 3 responses each."""
    return Testbed(TestbedConfig(prompts=40, responses_per_prompt=3)).write(tmp_path_factory.mktemp("mixture") / "data.parquet")


@pytest.fixture
def fresh_dora(tmp_path: Path) -> Iterator[Dora]:
    """In a home that does not exist."""
    dora = Dora(tmp_path)
    yield dora
    for process in dora.processes():
        process.kill()


@pytest.fixture
def dora(fresh_dora: Dora, empty_mlflow_database: Path, empty_prefect_database: Path) -> Dora:
    """In a home with empty databases."""
    fresh_dora.use_databases(mlflow=empty_mlflow_database, prefect=empty_prefect_database)
    return fresh_dora
