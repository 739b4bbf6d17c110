"""`dora data preview` and `dora data export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app

CONFIG = "data: {{train: [{{path: {path}}}], golden_sources: [human]}}\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path / "home"))


@pytest.fixture
def config(tmp_path: Path, mixture: Path) -> Path:
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG.format(path=mixture))
    return file


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["data", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def document(*arguments: object) -> dict[str, Any]:
    code, out, _ = run(*arguments, "--json")
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    return found


def test_refused_data_has_exit_code_2(tmp_path: Path, mixture: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG.format(path=mixture).replace("[human]", "[nobody-here]"))
    code, said, error = run("preview", "-c", file, "--shown", "0")
    assert code == 2 and "no source matches data.golden_sources" in error and "h cannot be estimated" in said
    code, out, _ = run("preview", "-c", file, "--json")
    assert code == 2 and not json.loads(out)["accepted"]


@pytest.mark.parametrize("arguments", [[], ["--run", "latest"], ["x.jsonl", "-c", "c.yaml"], ["x.jsonl", "--set", "a=1"]])
def test_wrong_arguments(arguments: list[str]) -> None:
    code, _, said = run("preview", *arguments)
    assert code == 2 and "preview takes a configuration or inputs" in said


def test_help_has_an_example() -> None:
    for command in ("preview", "export"):
        code, said, _ = run(command, "--help")
        assert code == 0 and f"dora data {command}" in " ".join(said.split())
