"""Starting servers on a busy machine: how long to wait, and why one did not come up."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from infra.processes import RecordedProcess

LONGEST = 8.0
"""Most times that a wait is extended; a machine beyond that load starts nothing usable."""
LINE_CHARACTERS = 240
_ERROR = re.compile(r"^\s*[\w.]*(?:Error|Exception|Timeout|Refused)\b.*\S")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def crowding() -> float:
    """Return how much longer than on a quiet machine a start takes: runnable processes per core, within 1 and :data:`LONGEST`."""
    try:
        load = psutil.getloadavg()[0]
    except OSError:  # unknown in some containers
        load = 0.0
    return min(max(load / (os.cpu_count() or 1), 1.0), LONGEST)


@dataclass
class Patience:
    """A wait that grows with the load.

    Attributes:
        seconds: the wait on a quiet machine.
    """

    seconds: float
    _started: float = field(default_factory=lambda: time.monotonic())
    _worst: float = 1.0

    @property
    def budget(self) -> float:
        """Seconds to wait in all, by the worst load so far."""
        self._worst = max(self._worst, crowding())
        return self.seconds * self._worst

    def is_over(self) -> bool:
        return time.monotonic() - self._started > self.budget

    def __str__(self) -> str:
        load = f" (the machine is busy: {self.seconds:.0f} s on a quiet one)" if self._worst > 1.0 else ""
        return f"{self.budget:.0f} s{load}"


def last_error(process: RecordedProcess) -> str:
    """Return the last line of its log that names an error, else its last line; empty without a log."""
    lines = [_ESCAPES.sub("", line).strip() for line in process.log_tail(200).splitlines()]
    lines = [line for line in lines if line]
    named = [line for line in lines if _ERROR.match(line)]
    return (named or lines or [""])[-1][:LINE_CHARACTERS]


def look_at(process: RecordedProcess) -> str:
    """Return the hint for a server that did not come up: its own last error, and the whole log."""
    why = last_error(process)
    return f"it says: {why}\nlog: {process.log}" if why else f"log: {process.log}"
