"""Peak memory of this process, as Linux counts it: resident pages, ``VmHWM`` of ``/proc/self/status`` (man 5 proc)."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def restart_peak() -> None:
    """Count the peak from now on; where the kernel refuses (another system, a locked container), it stays that of the whole process."""
    with suppress(OSError):
        CLEAR.write_text("5", encoding="ascii")


def peak_memory() -> int | None:
    """Return the peak in bytes; None where the system does not tell."""
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(encoding="utf-8"), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    return None
