"""A write-ahead log for calls to a server that may be away: append first, send later, acknowledge what arrived.

One spool is two things beside each other: ``<name>.jsonl`` (lines ``{"seq", "op"}`` and ``{"ack", …facts}``) and a folder ``<name>/``
with the files the operations refer to. Its owner holds an exclusive lock for as long as it lives, so a later process
adopts only what a finished or killed one left behind. Delivery is at least once: operations must be idempotent.

Left out: fsync. A spool survives the death of its process, not of the machine; what it feeds can be recomputed from the store.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

Operation = dict[str, Any]


class Spool:
    """An open, locked spool. ``pending`` and ``facts`` hold what was read back when it was adopted.

    Attributes:
        pending: (sequence number, operation) not yet acknowledged, in the order they were appended.
        facts: everything acknowledgements carried, merged (``{local run id: server run id}``).
        operations: every operation ever appended to an adopted spool, acknowledged or not.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.files = path, path.with_suffix("")
        self._file = path.open("a+", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises BlockingIOError: its owner is alive
        self._lock = threading.Lock()
        self._read()

    @classmethod
    def create(cls, folder: Path, key: str) -> Spool:
        return cls(folder / f"{key}-{time.time_ns():020d}-{os.getpid()}.jsonl")

    @classmethod
    def adopt(cls, folder: Path, key: str) -> list[Spool]:
        """Spools of the same key whose owners are gone, oldest first."""
        spools = []
        for path in sorted(folder.glob(f"{key}-*.jsonl")):
            try:
                spools.append(cls(path))
            except BlockingIOError:
                continue
        return spools

    def append(self, operation: Operation) -> int:
        """Write one operation and return its sequence number."""
        with self._lock:
            self._count += 1
            self._open.add(self._count)
            self._write({"seq": self._count, "op": operation})
            return self._count

    def acknowledge(self, seq: int, facts: dict[str, str] | None = None) -> None:
        """The operation arrived (or never will): it is not sent again."""
        with self._lock:
            self._open.discard(seq)
            self._write({"ack": seq} | ({"facts": facts} if facts else {}))

    def keep(self, name: str, content: bytes) -> str:
        """Keep a file's bytes beside the log; returns its path, whose last part is the last part of ``name``."""
        with self._lock:
            self._blobs += 1
            target = self.files / f"{self._blobs:04d}" / Path(name).name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        return str(target)

    @property
    def open_operations(self) -> int:
        return len(self._open)

    def close(self, keep: bool = False) -> None:
        """Give up the lock; delete everything if nothing is left to send, unless what waits elsewhere needs its facts."""
        with self._lock:
            if not (self._open or keep):
                shutil.rmtree(self.files, ignore_errors=True)
                self.path.unlink(missing_ok=True)
            self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _read(self) -> None:
        self.operations: dict[int, Operation] = {}
        self.facts: dict[str, str] = {}
        acknowledged: set[int] = set()
        self._file.seek(0)
        for text in self._file:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue  # the last line of a killed process
            if "op" in line:
                self.operations[line["seq"]] = line["op"]
            else:
                acknowledged.add(line["ack"])
                self.facts |= line.get("facts", {})
        self.pending = [(seq, op) for seq, op in self.operations.items() if seq not in acknowledged]
        self._open = {seq for seq, _ in self.pending}
        self._count = max(self.operations, default=0)
        self._blobs = len(list(self.files.iterdir())) if self.files.is_dir() else 0
