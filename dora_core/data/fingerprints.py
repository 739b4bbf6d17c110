"""Memory of checksums: an input file that has not changed since it was last hashed is not read again.

One JSON file holds, for each absolute path, size, time of change, time of status change, inode and sha256. A checksum is reused only if all
four numbers are those of now. It is kept only if they did not move while the file was read and if the file had been left alone for
:data:`SETTLED` before: a file system's clock is too coarse to show two changes at almost the same time.

The memory only saves time. Where it is missing, damaged or cannot be written, files are hashed as if there were none. Two processes that
write at once keep the entries of the later one; the others are hashed again.

Left out: objects of remote stores, whose times are too coarse; they are hashed every time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SETTLED = 2 * 10**9
"""Nanoseconds since a file's last change from which its times can be trusted."""
MOST = 10_000
"""Files remembered; the ones hashed longest ago are forgotten first. About 2 MB of JSON."""
_SHA256 = re.compile(r"[0-9a-f]{64}")

State = tuple[int, int, int, int]
"""Size, mtime and ctime in nanoseconds, inode."""


class FingerprintMemory:
    """Checksums of local files by path and state.

    Args:
        path: the JSON file; it and its folder need not exist. None: nothing is remembered beyond this object.
        clock: nanoseconds since 1970.
    """

    def __init__(self, path: Path | None = None, clock: Callable[[], int] = time.time_ns):
        self._path, self._clock = path, clock
        self._known = {} if path is None else _read(path)
        self._new: dict[str, tuple[State, str]] = {}

    def sha256(self, file: str, compute: Callable[[], str]) -> str:
        """The checksum of a local file: the remembered one if the file is as it was then, else what ``compute`` returns."""
        key, before = os.path.abspath(file), _state(file)
        if self._is_settled(before) and self._known.get(key, (None, ""))[0] == before:
            return self._known[key][1]
        digest, now = compute(), self._clock()
        if before is not None and self._is_settled(before, now) and _state(file) == before:
            self._known[key] = self._new[key] = (before, digest)
        return digest

    def save(self) -> None:
        """Write the entries added since the last call, beside the entries that other processes wrote meanwhile; atomic."""
        if self._path is None or not self._new:
            return
        entries = {k: v for k, v in _read(self._path).items() if k not in self._new} | self._new
        kept = dict(list(entries.items())[-MOST:])
        with contextlib.suppress(OSError):  # a full or read-only disk: the files are hashed again next time
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = (f"{json.dumps(name)}: {json.dumps([*state, digest])}" for name, (state, digest) in kept.items())
            _replace(self._path, "{\n" + ",\n".join(lines) + "\n}\n")
            self._new = {}

    def _is_settled(self, state: State | None, now: int | None = None) -> bool:
        return state is not None and max(state[1], state[2]) + SETTLED <= (self._clock() if now is None else now)


def _state(file: str) -> State | None:
    try:
        facts = os.stat(file)
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino


def _read(path: Path) -> dict[str, tuple[State, str]]:
    """The entries of the memory; damaged ones are left out."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    known: dict[str, tuple[State, str]] = {}
    for name, entry in content.items() if isinstance(content, dict) else ():
        match entry:
            case [int(size), int(changed), int(status), int(inode), str(digest)] if _SHA256.fullmatch(digest):
                known[name] = ((size, changed, status, inode), digest)
    return known


def _replace(path: Path, text: str) -> None:
    """Write a temporary file beside ``path`` and rename it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
