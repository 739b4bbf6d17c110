"""`dora tune`: mistakes before anything starts, and the plan with its trials."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from flows.cli import app

BETA = ("--over", "align.loss.beta=0.05,0.1,0.3")


def test_mistakes_are_named_before_anything_starts(config_file: Path, own_home: Path) -> None:
    command = ["tune", "-c", str(config_file)]
    for arguments, message in (
        ([], "a search needs at least one --over KEY=SPACE"),
        (["--over", "data.golden_sources=a,b"], "a search varies keys of align, calibration, classifier, trust, sft"),
        (["--over", "align.objective.ess_target=0.5..2.0"], "--over gives trial 1"),
        (["--resume", *BETA], "--resume goes on with the last search as it is"),
        (["--resume"], "has no search to go on with"),
    ):
        done = CliRunner().invoke(app, [*command, *arguments])
        assert done.exit_code == 2 and message in " ".join(done.stderr.split()), done.stderr
    assert not list(own_home.glob("store/*/*/result.json"))


def test_a_dry_run_shows_plan_and_trials(config_file: Path, own_home: Path) -> None:
    done = CliRunner().invoke(app, ["tune", "-c", str(config_file), *BETA, "--trials", "3", "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert plan["stages"][-1]["label"] == "tune"
    assert [values.get("align.loss.beta") for values in plan["trials"].values()] == [None, 0.05, 0.3], "0.1 is the configuration's own"
    assert not (own_home / "store" / "projects").exists(), "nothing to resume"
