"""Commands in this process, as a user gives them: exit code, stdout and stderr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from typer.testing import CliRunner

from flows.cli import app


class Ended(NamedTuple):
    code: int
    out: str
    error: str


def invoke(*arguments: object) -> Ended:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return Ended(done.exit_code, done.stdout, done.stderr)


def document(*arguments: object, code: int = 0) -> dict[str, Any]:
    """The one JSON document on stdout."""
    done = invoke(*arguments, "--json")
    assert done.code == code, done
    found: dict[str, Any] = json.loads(done.out)
    return found


def assert_help(command: str, *options: str) -> None:
    """The help of a command has its example and its options."""
    shown = invoke(command, "--help")
    text = " ".join(shown.out.split())
    assert shown.code == 0 and f"Example: dora {command}" in text
    assert not [option for option in options if option not in text]


def assert_wrong(*arguments: object, says: str) -> None:
    """A mistake of the user: exit code 2 and a message, nothing on stdout."""
    done = invoke(*arguments)
    assert done.code == 2 and done.out == ""
    assert says in " ".join(done.error.replace("│", " ").split()), done.error


def write_config(folder: Path, data: Path, more: str = "") -> Path:
    file = folder / "c.yaml"
    file.write_text(f"project: demo\ndata: {{train: [{{path: {data}}}], golden_sources: [human]}}\n{more}")
    return file
