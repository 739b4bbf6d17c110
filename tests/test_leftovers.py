"""A suite stopped by Ctrl-C ends what it has started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

SUITE = """
import pathlib, subprocess, sys

def test_started() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    pathlib.Path(__file__).with_name("pid").write_text(str(child.pid))
    raise {end}
"""


@pytest.mark.parametrize("end", ["KeyboardInterrupt", "SystemExit", "AssertionError"])
def test_a_detached_child_ends_with_the_suite(end: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE.replace("{end}", end))
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_STARTED_BY"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.leftovers", "-p", "no:cacheprovider", "-c", os.devnull, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    pid = int((tmp_path / "pid").read_text())
    assert done.returncode != 0 and not psutil.pid_exists(pid), done.stdout
