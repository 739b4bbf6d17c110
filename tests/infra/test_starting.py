"""Time and reasons of a start on a busy machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra import starting
from infra.processes import RecordedProcess
from infra.starting import Patience, crowding, last_error, look_at


@pytest.mark.parametrize(
    ("load", "cores", "expected"),
    [(0.5, 2, 1.0), (2.0, 2, 1.0), (6.0, 2, 3.0), (25.0, 4, 6.25), (400.0, 2, starting.LONGEST)],
)
def test_a_start_takes_as_much_longer_as_there_are_processes_per_core(
    load: float, cores: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting.psutil, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert crowding() == expected


def test_patience_grows_with_the_load_and_does_not_shrink_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loads, now = [1.0, 3.0, 1.0], [0.0]
    monkeypatch.setattr(starting, "crowding", lambda: loads.pop(0) if len(loads) > 1 else loads[0])
    monkeypatch.setattr(starting.time, "monotonic", lambda: now[0])
    patience = Patience(10.0)
    now[0] = 9.0
    assert not patience.is_over()
    now[0] = 29.0  # over on a quiet machine, but this one has become busy
    assert not patience.is_over() and str(patience) == "30 s (the machine is busy: 10 s on a quiet one)"
    now[0] = 31.0
    assert patience.is_over()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("starting\n\x1b[31mValueError: no port\x1b[0m\nbye\n", "ValueError: no port"),
        ("a\nsqlalchemy.exc.DatabaseError: file is not a database\n(Background on this error)\n\n",
         "sqlalchemy.exc.DatabaseError: file is not a database"),
        ("no module named ray\n", "no module named ray"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_reason_is_one_line(text: str, expected: str, tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text(text)
    process = RecordedProcess.current().evolve(log=str(log))
    assert last_error(process) == expected
    assert look_at(process) == (f"it says: {expected}\nlog: {log}" if expected else f"log: {log}")
