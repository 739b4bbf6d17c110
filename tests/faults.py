"""The fault matrix in the tests: ``@pytest.mark.fault(4)`` says which fault of ``tests/FAULTS.md`` a test makes; ``recovery`` measures
how long it takes until all is well again, and the session ends with a table of it. Times are shown, never asserted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

FAULTS = range(1, 25)


class Recovery:
    """A stop watch from the fault to its cure."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self.seconds: float | None = None

    def begins(self) -> None:
        """The fault has just been made."""
        self._begun = time.monotonic()

    def ends(self) -> None:
        """What the fault interrupted is finished; without this call, the end of the test is."""
        if self._begun is not None and self.seconds is None:
            self.seconds = time.monotonic() - self._begun


@pytest.fixture
def recovery(request: pytest.FixtureRequest) -> Iterator[Recovery]:
    """Measured where the test calls ``recovery.begins()``."""
    recovery = Recovery()
    yield recovery
    recovery.ends()
    request.node.user_properties.append(("recovery", recovery.seconds))


@dataclass
class Row:
    """What the table shows of one test."""

    faults: list[int]
    outcome: str = "passed"
    seconds: float | None = None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Table(), "faults")


class Table:
    """Gathers what happened; where ``pytest -n`` deals tests out, in the process that hands them out."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        item.user_properties += [("fault", number) for mark in item.iter_markers("fault") for number in mark.args]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        faults = [number for name, number in report.user_properties if name == "fault"]
        if not faults:
            return
        row = self.rows.setdefault(report.nodeid, Row(faults))
        if report.outcome != "passed":
            row.outcome = report.outcome
        row.seconds = dict(report.user_properties).get("recovery", row.seconds)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.rows:
            return
        terminalreporter.section("faults: outcome, seconds from the fault to its cure")
        lines = [(fault, test, row) for test, row in self.rows.items() for fault in row.faults]
        for fault, test, row in sorted(lines, key=lambda line: line[:2]):
            seconds = "–" if row.seconds is None else f"{row.seconds:.1f}"
            terminalreporter.write_line(f"{fault:3d}  {row.outcome:8s}{seconds:>7s}  {test.removeprefix('tests/')}")
