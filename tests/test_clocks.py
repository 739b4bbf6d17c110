"""Durations and waits use a monotonic clock: the wall clock may be set back or forward by an hour (daylight saving by hand, NTP, a
virtual machine that was paused)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("dora_core", "infra", "tasks", "flows")
WALL = ("time.time", "datetime.now")
ALLOWED = {
    "tasks/training/ray_backend.py": "the provider gives the deadline of a preemption as a date; it is only said",
    "flows/running/approval.py": "a question's deadline is hours away, and read by another process",
    "flows/running/manifest.py": "a run waits for its answer in no process",
    "flows/upkeep/reap.py": "Prefect's states have a date",
    "flows/upkeep/reachability.py": "Prefect's schedules have a date",
}
"""Files that compare the wall clock with another date, and why they must."""


def differences(source: str) -> Iterator[int]:
    """Yield the lines that subtract, add to or compare the wall clock."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp | ast.Compare):
            calls = (inner for inner in ast.walk(node) if isinstance(inner, ast.Call))
            if any(ast.unparse(call.func) in WALL for call in calls):
                yield node.lineno


FOUND = {
    file.relative_to(ROOT).as_posix(): lines
    for package in PACKAGES
    for file in sorted((ROOT / package).rglob("*.py"))
    if (lines := sorted({*differences(file.read_text(encoding="utf-8"))}))
}


@pytest.mark.fault(33)
def test_no_duration_is_measured_by_the_wall_clock() -> None:
    assert FOUND.keys() == ALLOWED.keys(), {file: lines for file, lines in FOUND.items() if file not in ALLOWED}


def test_differences_are_found() -> None:
    source = "start = time.time()\nx = 1.0\nleft = limit - time.time()\nwhile time.time() < limit:\n    pass\nnow = time.monotonic() - x"
    assert list(differences(source)) == [3, 4]
    assert list(differences("since = datetime.now(UTC) - LIMIT")) == [1]
