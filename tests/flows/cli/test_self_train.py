"""`dora self-train`: its plan has rounds, and its configuration is that of rounds."""

from __future__ import annotations

from pathlib import Path

from tests.flows.cli.invoked import assert_help, assert_wrong, document, write_config

ROUNDS = "rounds: {rounds: 2}\njudge: {kind: gold}\n"


def test_help_has_an_example_and_the_options() -> None:
    assert_help("self-train", "--config", "--set", "--dry-run")


def test_the_plan_has_every_round(own_home: Path, tmp_path: Path, mixture: Path) -> None:
    file = write_config(tmp_path, mixture, ROUNDS)
    plan = document("self-train", "-c", file, "--dry-run")
    assert {stage["round"] for stage in plan["stages"]} - {None} == {0, 1, 2}
    fewer = document("self-train", "-c", file, "--set", "rounds.rounds=1", "--dry-run")
    assert {stage["round"] for stage in fewer["stages"]} - {None} == {0, 1}


def test_wrong_rounds_are_refused(own_home: Path, tmp_path: Path, mixture: Path) -> None:
    file = write_config(tmp_path, mixture, ROUNDS)
    assert_wrong("self-train", "-c", file, "--set", "rounds.rounds=-1", "--dry-run", says="rounds.rounds")
    assert_wrong("self-train", "-c", file, "--set", "rounds.strategy=rafft", "--dry-run", says="did you mean 'raft'?")


def test_the_settings_of_rounds_are_unknown_to_a_realignment(own_home: Path, tmp_path: Path, mixture: Path) -> None:
    assert_wrong("realign", "-c", write_config(tmp_path, mixture, ROUNDS), "--dry-run", says="rounds")
