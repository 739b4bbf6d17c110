"""`dora realign`, `dora calibrate` and `dora align`: plans that end at their stage, and mistakes in the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.cli.invoked import assert_help, assert_wrong, document, invoke

LAST = {"realign": "promote", "calibrate": "calibrate", "align": "align"}


@pytest.mark.parametrize("command", LAST)
def test_help_has_an_example_and_the_options(command: str) -> None:
    assert_help(command, "--config", "--set", "--dry-run", "--json", "--verbose")


@pytest.mark.parametrize(("command", "last"), LAST.items())
def test_the_plan_ends_at_the_stage_of_the_command(command: str, last: str, config_file: Path) -> None:
    labels = [stage["label"] for stage in document(command, "-c", config_file, "--dry-run")["stages"]]
    assert labels[0] == "ingest" and labels[-1] == last
    assert ("align" in labels) == (command != "calibrate")


def test_overrides_reach_the_plan(config_file: Path) -> None:
    plan = document("realign", "-c", config_file, "--set", "align.objective.name=erm", "--dry-run")
    assert not {"classify", "calibrate"} & {stage["label"] for stage in plan["stages"]}


@pytest.mark.parametrize("command", LAST)
def test_a_configuration_is_needed_and_must_be_there(command: str, own_home: Path) -> None:
    assert_wrong(command, says="Missing option '--config' / '-c'")
    assert_wrong(command, "-c", "nothing.yaml", "--dry-run", says="nothing.yaml")


def test_a_wrong_key_names_the_nearest_one(config_file: Path) -> None:
    done = invoke("realign", "-c", config_file, "--set", "align.objectiv.name=erm", "--dry-run")
    assert done.code == 2 and "objective" in done.error
