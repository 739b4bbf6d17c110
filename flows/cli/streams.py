"""Standard streams that cannot fail: output must not end a run, nor change its exit code.

A character that the stream's encoding cannot take is replaced. A closed stdout or stderr, a pipe whose reader has gone
(``dora … | head``) and a terminal that hung up take nothing more; a full disk behind ``> file`` is reported on stderr once.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

GONE = frozenset({errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO})


class _Forgiving(io.FileIO):
    """A file descriptor that takes everything, also when nothing reads it any more."""

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if error.errno not in GONE and self.fileno() == 1:
                with suppress(Exception):
                    print(f"error: output is lost: {error.strerror}", file=sys.stderr, flush=True)
            return size


def settle_streams() -> None:
    """Replace ``sys.stdout`` and ``sys.stderr`` of this process; see the module docstring."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file that is opened would get its number, and the output of libraries
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, this one
    sys.stderr = _settled(sys.stderr, 2, "backslashreplace")
    sys.stdout = _settled(sys.stdout, 1, "replace")


def _settled(stream: TextIO | None, descriptor: int, errors: str) -> TextIO:
    encoding, lines = "utf-8", descriptor == 2 or os.isatty(descriptor)
    if stream is not None:
        encoding = stream.encoding or encoding
        with suppress(OSError):
            stream.flush()
    raw = _Forgiving(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=lines, write_through=descriptor == 2)
