"""`dora report`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app


def test_unknown_run_and_model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["report", "nothing"])
    assert done.exit_code == 2 and "there are no runs" in done.stderr
