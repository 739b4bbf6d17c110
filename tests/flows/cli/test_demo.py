"""`dora demo`: its plan on generated data, and its options."""

from __future__ import annotations

from pathlib import Path

from tests.flows.cli.invoked import assert_help, assert_wrong, document

FIRST, LAST = "ingest", "promote"


def test_help_has_an_example_and_the_options() -> None:
    assert_help("demo", "--rounds", "--dry-run", "--json")


def test_a_negative_number_of_rounds_is_refused() -> None:
    assert_wrong("demo", "--rounds", "-1", says="Input should be greater than or equal to 0")


def test_the_plan_covers_the_whole_pipeline_and_runs_nothing(own_home: Path) -> None:
    plan = document("demo", "--dry-run")
    stages = [stage["label"] for stage in plan["stages"]]
    assert stages[0] == FIRST and stages[-1] == LAST and {"calibrate", "align", "evaluate"} <= set(stages)
    assert not any(stage["cached"] for stage in plan["stages"]) and plan["data"]["inputs"]
    assert not list((own_home / "store").glob("*/*/result.json"))


def test_rounds_are_appended(own_home: Path) -> None:
    plan = document("demo", "--rounds", "1", "--dry-run")
    assert {stage["round"] for stage in plan["stages"] if stage["label"] != LAST} == {0, 1}
    assert any(stage["label"] == "r1 align" for stage in plan["stages"])
