"""What a session of pytest has started ends with it, also after Ctrl-C, when the workers of ``-n`` are killed before their fixtures.

Servers and Ray heads lead their own sessions, so that a Ctrl-C in the terminal does not reach them. Every process inherits a variable of
the session, by which the controlling process finds those that are left.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

import psutil
import pytest

from infra.processes import RecordedProcess, terminate_tree

VARIABLE = "PYTEST_STARTED_BY"


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and VARIABLE not in os.environ:
        os.environ[VARIABLE] = f"{os.getpid()}-{time.time_ns()}"


def pytest_unconfigure(config: pytest.Config) -> None:
    value = os.environ.get(VARIABLE, "")
    if not hasattr(config, "workerinput") and value.startswith(f"{os.getpid()}-"):
        terminate_tree([RecordedProcess.of(process, f"leftover {process.pid}") for process in left_over(value)], grace=3.0)
        os.environ.pop(VARIABLE, None)


def left_over(value: str) -> list[psutil.Process]:
    """Processes that inherited the session's variable, except this one and the workers of pytest."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(VARIABLE) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
