"""Host memory that freed tensors leave with the process.

glibc keeps blocks below its threshold (it rises to 32 MiB by itself) for later: after the layers of a model were gathered and dropped one
by one, the process is as large as the whole model though it holds one rank's share.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def release_freed_memory() -> None:
    """Return freed blocks to the system; without effect where the C library is not glibc."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    except OSError:
        return None
    return found
