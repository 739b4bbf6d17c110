"""The command line's surface: quick help, examples, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dora_core.errors import ConfigError, DataError, ServiceError, StageFailed
from flows.cli import app
from flows.cli.errors import explained
from flows.cli.output import Meter

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert f"Example: dora {command}" in shown.stdout


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from typer.testing import CliRunner
from flows.cli import app
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
print(*sorted({"torch", "prefect", "mlflow", "ray", "transformers", "pyarrow", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_planning_imports_nothing_heavy(tmp_path: Path, mixture: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"data: {{train: [{{path: {mixture}}}]}}")
    code = f"""
import sys
from typer.testing import CliRunner
from flows.cli import app
done = CliRunner().invoke(app, ["realign", "-c", {str(tmp_path / "c.yaml")!r}, "--dry-run"])
assert done.exit_code == 0, done.output
print(*sorted({{"torch", "prefect", "mlflow", "ray", "transformers", "datasets", "matplotlib"}} & set(sys.modules)))
"""
    environment = dict(os.environ) | {"DORA_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a", hint="b"), 2),
        (DataError("a"), 2),
        (StageFailed("a"), 1),
        (ServiceError("a"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    with pytest.raises(typer.Exit) as caught, explained():
        raise error
    assert caught.value.exit_code == code
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") >= 1


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), explained():
        _ = 1 / 0


def test_the_rate_counts_this_attempt_only() -> None:
    meter = Meter()
    event = {"kind": "progress", "total": 100, "unit": "rows", "note": ""}
    assert meter.read("a", event | {"done": 50, "time": 10.0}) == "50/100 rows"
    assert meter.read("a", event | {"done": 70, "time": 14.0}) == "70/100 rows, 5/s"
    assert meter.read("a", {"kind": "metrics"}) == ""


def test_unknown_run_and_model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["report", "nothing"])
    assert done.exit_code == 2 and "there are no runs" in done.stderr


def test_a_reason_with_braces_is_a_name_for_prefect() -> None:
    from flows.running.supervise import literally

    reason = "align · runs: align.optimization.lora none → {'rank': 4}"
    assert literally(reason).format(stage=None) == reason


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
