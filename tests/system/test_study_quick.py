"""The packaged quick study, whole: every table of the paper has rows, in one command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dora_core.evaluation.study_statistics import TABLES
from infra.store.store import Store


@pytest.mark.nightly
def test_quick_study_fills_every_table(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from flows.cli import main; main()", "study", "--preset", "quick", "--json"]
    done = subprocess.run(command, env=os.environ | {"DORA_HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["status"] == "completed"
    assert manifest["warnings"] == []
    tables = manifest["stages"][-1]
    facts = Store(str(tmp_path / "store")).read_result(tables["stage"], tables["digest"])["facts"]
    assert set(facts["tables"]) == set(TABLES) - {"rounds"}
    assert list(facts["missing"]) == ["rounds"]
    assert all(facts["tables"].values())
    assert Path(manifest["links"]["report"]).stat().st_size > 100_000
