"""The fault matrix: its faults, the page ``tests/FAULTS.md``, and the pytest plugin that measures recovery.

``@pytest.mark.fault(4)`` names the fault that a test makes. ``python -m tests.faults`` writes the page from the list below and from
these marks; ``tests/test_faults.py`` compares the two. The fixture ``recovery`` measures the time from a fault until the interrupted work
is finished, and the session ends with a table of it. Times are shown, never asserted.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS / "FAULTS.md"


@dataclass(frozen=True)
class Fault:
    """One line of the matrix.

    Attributes:
        outcome: what the run does after the fault.
        asserted: numbers of the guarantees that its tests check, of ``infra/README.md``.
        recovery: least and most seconds measured; None if the fault interrupts nothing that can be timed.
    """

    number: int
    fault: str
    outcome: str
    asserted: tuple[int, ...]
    recovery: tuple[float, float] | None = None

    def row(self) -> str:
        guarantees = " ".join(f"I{number}" for number in self.asserted)
        seconds = " – ".join(f"{value:g}" for value in sorted(set(self.recovery or ()))) or "–"
        return f"| {self.number} | {self.fault} | {self.outcome} | {guarantees} | {seconds} |"


FAULTS = [
    Fault(
        1,
        "a scoring actor dies in the middle of a shard",
        "its shard goes to a new actor, also if the actor is only unreachable; every other shard is computed once; same bytes",
        asserted=(1, 2, 4, 5),
        recovery=(0.6, 0.6),
    ),
    Fault(
        2,
        "the same shard kills its actor every time",
        "after `max_failures` + 1 deaths it is set aside, the others are finished, and the stage fails with the rows, "
        "the number of deaths and the key to lower; deaths are bounded, nothing hangs",
        asserted=(2, 4, 5, 6),
        recovery=(5.3, 13),
    ),
    Fault(
        3,
        "out of memory on the device",
        "inference and training go on with half the tokens per batch, down to one record, and the result's warnings "
        "name the key to set; results are equal up to rounding, because batches are cut differently. If a smaller batch "
        "does not help, training ends at once, with the memory that the weights and the optimizer need and the keys "
        "that lower it",
        asserted=(2, 4, 6),
        recovery=(0.2, 0.2),
    ),
    Fault(
        4,
        "SIGKILL of a training rank in the middle of a step",
        "Ray Train restarts the ranks from the last checkpoint; weights are equal to the bit. An error that would recur "
        "at every attempt ends the run at once",
        asserted=(2, 4, 5),
        recovery=(10, 10),
    ),
    Fault(
        5,
        "killed while a checkpoint or the model is written",
        "a checkpoint without `progress.json`, or with another checksum, is skipped and deleted; weights are equal to the bit",
        asserted=(2, 4, 5),
        recovery=(6.2, 6.2),
    ),
    Fault(
        6,
        "SIGKILL of the job's driver",
        "two automatic retries; then the run ends with signal, log and next command",
        asserted=(2, 3, 4, 5, 6),
        recovery=(17, 37),
    ),
    Fault(
        7,
        "SIGKILL of the flow's process",
        "the worker (on servers) or the next command (without) ends its jobs and closes its runs; the next run resumes",
        asserted=(2, 3, 4, 5, 6),
        recovery=(1.6, 53),
    ),
    Fault(
        8,
        "SIGKILL of flow and worker",
        "`dora reap`, scheduled every 10 minutes in its own queue and run by hand at any time, closes the run in all "
        "three systems; without it the server notices three missing heartbeats; the next run resumes",
        asserted=(2, 3, 4, 5, 6),
        recovery=(10, 81),
    ),
    Fault(
        9,
        "cancelled in the UI",
        "job, ranks and runs end; nothing is left",
        asserted=(3, 4, 6),
        recovery=(9.6, 9.6),
    ),
    Fault(
        10,
        "MLflow stopped during a run, back later or never",
        "no call waits for it; missed updates are sent when it is back, by the next run or by `dora reap`, as the run's last note says",
        asserted=(3, 4, 6),
        recovery=(21, 37),
    ),
    Fault(
        11,
        "the Prefect API away for a minute, stopped or hung",
        "the run goes on and ends with its true state; commands say within half a minute that the server does not answer",
        asserted=(2, 3, 4, 6),
        recovery=(94, 104),
    ),
    Fault(
        12,
        "the Ray head is restarted",
        "the stage is submitted again to the new head and resumes from its shards or checkpoint",
        asserted=(2, 3, 4, 5, 6),
        recovery=(22, 37),
    ),
    Fault(
        13,
        "disk full",
        "the error names the full file system, what is free and the next command; no temporary file; finished shards stay",
        asserted=(2, 4, 5, 6),
        recovery=(0.1, 7.1),
    ),
    Fault(
        14,
        "a shard or a result is damaged",
        "a shard with another checksum is computed again; a result of another size does not count as done, and one with "
        "other bytes is refused when it is read, with the folder to delete",
        asserted=(2, 5, 6),
        recovery=(0.1, 0.2),
    ),
    Fault(
        15,
        "marker without data, data without marker",
        "that shard is computed again",
        asserted=(2, 5),
        recovery=(0.1, 0.2),
    ),
    Fault(
        16,
        "the same realignment started twice at once",
        "one computes; the other names the run it waits for, and finds the stages done",
        asserted=(3, 4, 5, 6),
        recovery=(0.5, 39),
    ),
    Fault(
        17,
        "the concurrency limit is missing",
        "the run fails at once and names `dora deploy`",
        asserted=(6,),
    ),
    Fault(
        18,
        "poisoned rows and scores",
        "rows: quarantined with file, row, field and reason, counted by kind. Scores: NaN is neutral and counted, "
        "refused above 1 %; infinite or extreme values are clipped and counted",
        asserted=(1, 6),
    ),
    Fault(
        19,
        "same name, another configuration",
        "another digest: nothing of the other run is resumed, every step is computed",
        asserted=(2, 5, 6),
    ),
    Fault(
        20,
        "a schedule across a clock change",
        "once a day, no run twice or left out; waits inside a run use the monotonic clock",
        asserted=(3, 4),
    ),
    Fault(
        21,
        "another number of workers between attempts",
        "shards: same bytes, finished ones are reused; checkpoints are resharded, weights are equal up to rounding",
        asserted=(2, 4, 5, 6),
        recovery=(0.2, 26),
    ),
    Fault(
        22,
        "an approval times out, comes twice, or is a refusal",
        "not promoted, promoted once, not promoted; the version records the person, the reason and the time",
        asserted=(3, 4, 6),
    ),
    Fault(
        23,
        "a checkpoint of another model or code version",
        "refused by name before a weight is loaded; training starts from an older one, or from scratch, and logs which",
        asserted=(2, 5, 6),
    ),
    Fault(
        24,
        "the registry changes during a promotion",
        "a champion that the policy was not compared with is not replaced; a kill after any write, and a second "
        "attempt, end in the same registry",
        asserted=(2, 3, 5, 6),
        recovery=(0.1, 0.6),
    ),
    Fault(
        25,
        "S3 answers 503 (SlowDown)",
        "requests are repeated for up to 3 minutes, with a notice at the beginning and the end of the outage",
        asserted=(2, 6),
        recovery=(0.9, 0.9),
    ),
    Fault(
        26,
        "S3 drops a connection in an upload or a download",
        "the part that was cut is sent or read again; an object appears only when it is complete, with the same bytes",
        asserted=(2,),
    ),
    Fault(
        27,
        "S3 lists files late",
        "shards, models and measurements are asked for by name, curves by number; a lease is not held on such a listing; "
        "`dora gc --delete` refuses",
        asserted=(1, 5, 6),
    ),
    Fault(
        28,
        "S3 is away for a minute, or for good",
        "as 25; the stage's warnings name the outage. After 3 minutes the run ends with the server, the cause and the next command",
        asserted=(2, 6),
        recovery=(2.3, 2.3),
    ),
    Fault(
        29,
        "a node is lost in scoring, sampling or training",
        "scoring and sampling: its shards go to other workers. Training: says which ranks are lost and what it waits for, "
        "continues from the last checkpoint when a node is there, or with fewer workers",
        asserted=(1, 2, 5, 6),
    ),
    Fault(
        30,
        "notice of a preemption in training",
        "a checkpoint is written at once, and the notice names ranks and time",
        asserted=(5, 6),
    ),
    Fault(
        31,
        "Ray's object store is full, and so is the disk that it spills to",
        "the stage ends with the keys to lower",
        asserted=(6,),
    ),
    Fault(
        32,
        "PostgreSQL is restarted under Prefect and MLflow",
        "the run goes on; states and measurements arrive when it is back, complete and once",
        asserted=(2, 3, 4),
        recovery=(36, 36),
    ),
    Fault(
        33,
        "the clock is set by an hour during a run",
        "durations, waits and leases use the monotonic clock",
        asserted=(5,),
    ),
    Fault(
        34,
        "two machines with one remote store compute the same stage",
        "one computes; the other names the run it waits for, and finds the stage done. The lease of a killed run is free at once on its "
        "own machine, after 90 s on another",
        asserted=(4, 5, 6),
        recovery=(0.5, 0.5),
    ),
    Fault(
        35,
        "the software is upgraded while a run is suspended",
        "finished stages with the same digest count, the others are computed again; a file that this release cannot read is named",
        asserted=(5, 6),
    ),
    Fault(
        36,
        "a store that the release before has written",
        "manifests, results, and updates that wait for MLflow are read",
        asserted=(6,),
    ),
]

INTRODUCTION = """\
# Kill anything

The guarantees that hold after any single fault are in [`infra/README.md`](../infra/README.md#what-may-be-killed) (I1 to I6). This matrix
tests them: real kills, stopped servers, damaged files and full disks wherever possible, injected failures in the tests otherwise (out of
memory on a device, a kill between two calls).

```bash
make chaos        # all of it
make test         # all but the slow ones: CI
```

Both end with a table of outcome and recovery per test. *Asserted* lists the guarantees that the tests of a fault check. *Recovery* is the
time from the fault until the interrupted work is finished, in seconds, of the small runs of the tests, least and most (2026-11-21, 2
cores of an AMD EPYC, 24 GiB, no GPU, nothing else running); a dash means that the fault interrupts nothing that could be timed. The whole
matrix of 328 tests passed in one run with `make test` (2026-12-01, 7,943 tests, 55 min on the same machine).

This page is generated from the marks of the tests: `python -m tests.faults`.
"""


# -------------------------------------------------------------------------------------------------------------- the page


def page() -> str:
    """The text of ``tests/FAULTS.md``."""
    tests = marked()
    lines = [INTRODUCTION, "| | fault | outcome | asserted | recovery |", "|---|---|---|---|---|", *(fault.row() for fault in FAULTS)]
    lines += ["", "## The tests", "", "Paths below `tests/`.", ""]
    lines += [f"{fault.number}. {', '.join(f'`{test}`' for test in sorted(tests[fault.number]))}" for fault in FAULTS]
    return "\n".join(lines) + "\n"


def marked(root: Path = TESTS) -> dict[int, set[str]]:
    """Read the marks in the source of the tests: ``{number: {"flows/test_realign.py::test_kill_9_…"}}``.

    Raises:
        KeyError: a mark names a fault that is not in the list.
    """
    found: dict[int, set[str]] = {fault.number: set() for fault in FAULTS}
    for file in root.rglob("test_*.py"):
        source = file.read_text(encoding="utf-8")
        if "mark.fault(" not in source:
            continue
        tree = ast.parse(source)
        of_all = [number for statement in tree.body if _sets_marks(statement) for number in _numbers(statement)]
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
                for number in [*of_all, *(number for decorator in function.decorator_list for number in _numbers(decorator))]:
                    found[number].add(f"{file.relative_to(root).as_posix()}::{function.name}")
    return found


def _sets_marks(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in statement.targets)


def _numbers(node: ast.AST) -> list[int]:
    marks = (n for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "fault")
    constants = (argument.value for mark in marks for argument in mark.args if isinstance(argument, ast.Constant))
    return [value for value in constants if isinstance(value, int)]


# ---------------------------------------------------------------------------------------------------- the pytest plugin


class Recovery:
    """A stop watch from the fault until everything that it interrupted is finished."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self.seconds: float | None = None

    def begins(self) -> None:
        """The fault has just been made."""
        self._begun = time.monotonic()

    def ends(self) -> None:
        """The interrupted work is finished. Without this call, the end of the test counts."""
        if self._begun is not None and self.seconds is None:
            self.seconds = time.monotonic() - self._begun


@pytest.fixture
def recovery(request: pytest.FixtureRequest) -> Iterator[Recovery]:
    """Stop watch of a test, which starts it with ``recovery.begins()``."""
    recovery = Recovery()
    yield recovery
    recovery.ends()
    request.node.user_properties.append(("recovery", recovery.seconds))


@dataclass
class Row:
    """One test in the table."""

    faults: list[int]
    outcome: str = "passed"
    seconds: float | None = None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Table(), "faults")


class Table:
    """Collects outcomes; with ``pytest -n``, in the process that distributes the tests."""

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
        terminalreporter.section("faults: outcome, seconds from the fault to recovery")
        lines = [(fault, test, row) for test, row in self.rows.items() for fault in row.faults]
        for fault, test, row in sorted(lines, key=lambda line: line[:2]):
            seconds = "–" if row.seconds is None else f"{row.seconds:.1f}"
            terminalreporter.write_line(f"{fault:3d}  {row.outcome:8s}{seconds:>7s}  {test.removeprefix('tests/')}")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
