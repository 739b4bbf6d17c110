"""Recorded processes: start a child that outlives this process, find it again, end it and its children, and nothing else.

Every child leads its own session. That makes ownership decidable later, even by another program and after the child itself was
killed: its tree is its descendants and the members of its session, and the kernel does not reuse a process id while a session carries
that number. A creation time guards against reuse after the last member is gone.

Left out: finding processes by name or port. A process that is not recorded is left alone.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from dora_core.strict_model import StrictModel

_PORT_TAKEN = re.compile(r"already occupied|address already in use", re.IGNORECASE)
CLOCK_TOLERANCE = 2.0
"""Seconds; creation times come in clock ticks, and the boot time moves a little with the wall clock."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class RecordedProcess(StrictModel):
    """A process as written into a record file: enough to recognise it for certain.

    Attributes:
        name: for messages ("mlflow server").
        pid: process id; also the id of its session if it was started by :func:`spawn`.
        created: creation time, seconds since the epoch.
        boot, since_boot: id of the system's boot, and creation time in seconds after it: setting the clock must not make a live process
            look like another. Without a boot id (empty) ``created`` decides.
        log: file with its stdout and stderr.
    """

    name: str
    pid: int
    created: float
    boot: str = ""
    since_boot: float = 0.0
    log: str = ""

    @classmethod
    def current(cls, name: str = "owner") -> RecordedProcess:
        return cls.of(psutil.Process(), name)

    @classmethod
    def of(cls, process: psutil.Process, name: str, log: str = "") -> RecordedProcess:
        return cls(name=name, pid=process.pid, created=process.create_time(), boot=_boot_id(), since_boot=_since_boot(process), log=log)

    def alive(self) -> bool:
        """Whether the recorded process itself runs (a zombie does not)."""
        return self._find() is not None

    def listens_on(self, port: int) -> bool:
        """Whether it, or a process of its tree, holds the TCP port, which another server may have taken first."""
        for process in process_tree([self]):
            with suppress(psutil.Error):
                if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in process.net_connections("tcp")):
                    return True
        return False

    def lost_its_port(self) -> bool:
        """Whether it has ended because, according to its log, another process took its port first."""
        return not self.alive() and _PORT_TAKEN.search(self.log_tail(50)) is not None

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the log, for error messages; empty if there is none."""
        path = Path(self.log)
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]) if path.is_file() else ""

    def _find(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            return process if abs(self._younger(process)) < CLOCK_TOLERANCE and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    def _younger(self, process: psutil.Process) -> float:
        """Seconds by which ``process`` is younger than the recorded one."""
        if not self.boot:
            return process.create_time() - self.created
        return _since_boot(process) - self.since_boot if self.boot == _boot_id() else -math.inf


def spawn(
    name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> RecordedProcess:
    """Start ``command`` in a new session, output appended to ``log``, no input.

    Args:
        environment: the child's whole environment; None: this process's.
        folder: its working directory; None: this process's.

    Raises:
        OSError: the command cannot be executed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=folder, start_new_session=True
        )
    return RecordedProcess.of(psutil.Process(child.pid), name, str(log))


def process_tree(recorded: Iterable[RecordedProcess]) -> list[psutil.Process]:
    """Return the live processes of the trees of ``recorded``: leaders first, then descendants and members of their sessions."""
    tree: dict[int, psutil.Process] = {}
    for record in recorded:
        roots = [leader] if (leader := record._find()) else []
        for process in [*roots, *_session_members(record)]:
            tree.setdefault(process.pid, process)
            try:
                tree.update({child.pid: child for child in process.children(recursive=True) if child.pid not in tree})
            except psutil.NoSuchProcess:
                continue
    return list(tree.values())


def terminate_tree(recorded: Sequence[RecordedProcess], *, grace: float = 10.0) -> list[str]:
    """End the recorded processes and their trees; returns the names of the leaders that were running.

    The leaders get SIGTERM and ``grace`` seconds to end their own children in their own order; the processes left then get
    SIGTERM and 2 s, and at last SIGKILL.
    """
    leaders = {record.name: leader for record in recorded if (leader := record._find())}
    tree = process_tree(recorded)
    _signal(leaders.values(), "terminate")
    _wait(leaders.values(), grace)
    # Children that started while the leaders were ending are found through the sessions.
    left = list({p.pid: p for p in [*tree, *process_tree(recorded)]}.values())
    for action, seconds in (("terminate", 2.0), ("kill", 5.0)):
        _signal(left, action)
        left = _wait(left, seconds)
    return list(leaders)


def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="utf-8").strip() if _BOOT_ID.exists() else ""


def _since_boot(process: psutil.Process) -> float:
    """Seconds from boot to creation, as the kernel keeps them; psutil adds the boot time, which moves when the clock is set."""
    return process.create_time() - psutil.boot_time()


def _session_members(record: RecordedProcess) -> list[psutil.Process]:
    members = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == record.pid and record._younger(process) >= -CLOCK_TOLERANCE:
                members.append(process)
        except (psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            continue
    return members


def _signal(processes: Iterable[psutil.Process], action: str) -> None:
    for process in processes:
        try:
            getattr(process, action)()
        except psutil.NoSuchProcess:
            continue


def _wait(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Return the processes still running after ``seconds``; reaps children of this process, and counts zombies of others as ended."""
    deadline = time.monotonic() + seconds
    left = list(processes)
    while left:
        _, left = psutil.wait_procs(left, timeout=0.1)
        left = [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if time.monotonic() >= deadline:
            break
    return left
