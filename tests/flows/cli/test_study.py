"""`dora study`: a preset or a configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "a study needs --preset or -c"), (["--preset", "quick", "-c", "c.yaml"], "--preset and -c exclude each other")],
)
def test_it_takes_either_a_preset_or_a_configuration(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["study", *arguments])
    assert done.exit_code == 2 and message in done.stderr and "dora study --preset quick" in done.stderr


def test_a_dry_run_counts_cells_and_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    small = ["--set", "seeds=[0]", "--set", "tables=[pairwise]", "--set", "testbed.prompts=40", "--set", "golden_responses=20"]
    done = CliRunner().invoke(app, ["study", "--preset", "quick", *small, "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert plan["seeds"] == 1 and plan["cells"] >= 2 and plan["stages_of_all_seeds"] > plan["cells"]
    assert [stage["label"] for stage in plan["stages"]] == ["seed 0", "tables"]
