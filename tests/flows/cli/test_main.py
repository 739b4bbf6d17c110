"""``python -m flows.cli``, and the list of the commands' files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import flows.cli

SHARED = {"__init__", "__main__", "app", "decide", "errors", "options", "output", "run", "searches", "streams"}


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "flows.cli", "gc", "--help"], capture_output=True, text=True, check=True)
    assert "Example: dora gc" in done.stdout


def test_every_file_with_a_command_is_listed() -> None:
    files = {path.stem for path in Path(flows.cli.__file__).parent.glob("*.py")}
    assert files - SHARED == set(flows.cli.NOUNS)
