"""Time-outs by progress: a command is given up when it has stopped, not when the machine is slow.

Progress is output, or processor time of the command's processes. A clock would fail tests on a busy machine, where everything takes ten
times as long.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

import psutil

IDLE_SECONDS = 240.0
"""Time without any progress after which a command is given up."""
LEAST_CPU_SECONDS = 0.2
"""Processor time that counts as progress."""


class Patience:
    """Whether processes still make progress; :meth:`over` is asked again and again.

    Args:
        processes: those whose processor time counts.
        written: number of bytes written so far.
    """

    def __init__(
        self, processes: Callable[[], Iterable[psutil.Process]], written: Callable[[], int] = lambda: 0, idle: float = IDLE_SECONDS
    ):
        self._processes, self._written, self._idle = processes, written, idle
        self._cpu, self._bytes, self._since = 0.0, 0, time.monotonic()

    def over(self) -> bool:
        cpu, written = sum(map(_cpu_seconds, self._processes())), self._written()
        if abs(cpu - self._cpu) >= LEAST_CPU_SECONDS or written != self._bytes:  # less, too: a process has ended
            self._cpu, self._bytes, self._since = cpu, written, time.monotonic()
        return time.monotonic() - self._since > self._idle


def run_to_its_end(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    others: Callable[[], Iterable[psutil.Process]] = lambda: (),
    idle: float = IDLE_SECONDS,
) -> subprocess.CompletedProcess[str]:
    """Run a command for as long as it makes progress.

    Args:
        others: further processes that work for it, such as its servers.

    Raises:
        AssertionError: it has stopped; with its output so far.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=dict(environment), stdout=output, stderr=log, text=True)
        patience = Patience(lambda: [*_tree(process.pid), *others()], lambda: output.seek(0, 2) + log.seek(0, 2), idle)
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1.0)
                break
            if patience.over():
                process.kill()
                process.wait()
                break
        said = []
        for stream in (output, log):
            stream.seek(0)
            said.append(stream.read())
        assert not patience.over(), f"{command} has stopped: no progress for {idle:.0f} s\n{said[0]}\n{said[1]}"
        return subprocess.CompletedProcess(list(command), process.returncode, *said)


def _tree(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def _cpu_seconds(process: psutil.Process) -> float:
    with suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0
