"""`dora promote`, `dora reject`, `dora rollback`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app


def test_a_decision_by_hand_moves_the_alias_and_shows_its_audit(
    mlflow_sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infra.tracking import model_registry as registry

    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    monkeypatch.setenv("DORA_MLFLOW_URI", mlflow_sqlite)
    for version in "123":
        registry.register(mlflow_sqlite, "demo", f"s3://bucket/{version}")
    registry.challenge(mlflow_sqlite, "demo", "3")

    def decide(*command: str) -> dict:
        shown = CliRunner().invoke(app, [*command, "--json"])
        assert shown.exit_code == 0, shown.stderr
        return json.loads(shown.stdout)

    decide("promote", "demo", "1", "--why", "first")
    assert decide("promote", "demo", "2")["aliases"] == {"champion": "2", "previous": "1", "challenger": "3"}
    rejected = decide("reject", "demo", "3", "--why", "unsafe")
    assert (rejected["champion"], rejected["audit"]["action"], rejected["audit"]["why"]) == ("2", "rejected", "unsafe")
    back = decide("rollback", "demo", "--why", "worse")
    assert (back["aliases"], back["version"], back["audit"]["action"]) == ({"champion": "1"}, "1", "restored")
    refused = CliRunner().invoke(app, ["reject", "demo", "1", "--why", "unsafe"])
    assert refused.exit_code == 2 and "is the champion" in refused.stderr and "dora rollback demo" in refused.stderr


def test_promote_and_rollback_of_an_unknown_model_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    for command in (["rollback", "nosuch"], ["promote", "nosuch", "1"]):
        shown = CliRunner().invoke(app, command)
        assert shown.exit_code == 2
        assert "nosuch" in shown.stderr and "Traceback" not in shown.stderr
