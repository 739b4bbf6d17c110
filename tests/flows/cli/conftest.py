"""A home of the test's own for every command, without servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.cli.invoked import write_config


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Home of the commands; no server is configured."""
    for name in ("PREFECT_API_URL", "DORA_PREFECT_API_URL", "MLFLOW_TRACKING_URI", "DORA_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DORA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def config_file(own_home: Path, tmp_path: Path, mixture: Path) -> Path:
    """Configuration of the small known mixture."""
    return write_config(tmp_path, mixture)
