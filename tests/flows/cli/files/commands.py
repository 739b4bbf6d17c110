"""Runs commands on files, as a user does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from dora_core.config.method import ModelConfig
from dora_core.testbed.mixture import TestbedConfig
from flows.cli import app
from infra.store.store import Store

TINY = ModelConfig(hidden_size=32, layers=1, heads=2, vocab_size=400)
MIXTURE = TestbedConfig(prompts=8, responses_per_prompt=3)
GENERATE = ["-n", "3", "--max-new-tokens", "12"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments: str) -> dict[str, Any]:
    """A command's JSON document."""
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refused(*arguments: str) -> str:
    """The error of a command that must be corrected by its user."""
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 2, done.output
    assert "hint: " in done.stderr
    return done.stderr


def finished_at(home: Path) -> dict[str, float]:
    """When each stage of the store was computed."""
    store = Store(str(home / "home" / "store"))
    return {f"{s}/{d}": store.read_result(s, d)["started"] for s in store.list("") for d in store.list(s) if store.read_result(s, d)}
