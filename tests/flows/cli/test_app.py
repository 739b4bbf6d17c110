"""The command line's surface: quick help, examples, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app

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
