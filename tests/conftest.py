"""What every test may rely on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

# A slow machine is no bug, and the same examples everywhere make a failure repeatable.
hypothesis.settings.register_profile("dora", deadline=None, derandomize=True)
hypothesis.settings.load_profile("dora")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start Ray or servers take turns in one worker, while the others run the rest (`--dist loadgroup`)."""
    for item in items:
        if any(item.get_closest_marker(name) for name in ("component", "system")):
            item.add_marker(pytest.mark.xdist_group("one at a time"))


@pytest.fixture(autouse=True)
def restored_environment() -> Iterator[None]:
    """Commands run in this process set PREFECT_*, MLFLOW_* and RAY_* variables; the next test must not inherit them."""
    saved = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture(autouse=True)
def interruptible() -> None:
    """Ray and Prefect change what SIGINT does in a process that has used them; tests of Ctrl-C need Python's own handler."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
