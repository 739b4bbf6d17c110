"""Who computes a stage: one run at a time on a local store. The others wait, say for whom, and find it done.

The lock is an advisory ``flock`` on ``<store>/locks/<stage>-<digest>``. The kernel frees it when the process that holds it ends, however
that happens; the file says who holds it and is deleted with it.

Left out: remote stores. Runs of several machines meet on a Prefect server, where they take turns (``flows/running/gpu_slots.py``); without
one, two that compute the same stage write the same bytes, and training twice into one checkpoint folder is theirs to avoid.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from infra.store.store import Store

LOOK_SECONDS = 0.5


@contextmanager
def ownership(
    store: Store, stage: str, digest: str, owner: str, *, is_done: Callable[[], bool], tell: Callable[[str], None]
) -> Iterator[bool]:
    """Hold a stage while the block runs; waits while another run does, unless the stage is done by then.

    Args:
        owner: name of this run, for those who wait for it.
        is_done: whether the stage's result is valid.
        tell: gets one sentence for each run that is waited for.

    Yields:
        Whether it is done, so that nothing is to be computed.
    """
    if store.remote is not None:
        yield is_done()
        return
    path, told = store.local(f"locks/{stage}-{digest}"), None
    while (file := _take(path, f"{owner} (process {os.getpid()})")) is None and not is_done():
        other = _holder(path)
        if other is not None and other != told:
            tell(f"waits for {other}, which computes the same {stage}")
            told = other
        time.sleep(LOOK_SECONDS)
    try:
        yield is_done()
    finally:
        if file is not None:
            path.unlink(missing_ok=True)  # while it is ours: whoever opens it later finds another file, or none
            file.close()


def free_abandoned(store: Store) -> None:
    """Delete the lock files of owners that were killed, where nobody has computed the stage since."""
    for name in store.list("locks") if store.remote is None else []:
        path = store.local(f"locks/{name}")
        if (file := _take(path, "")) is not None:
            path.unlink(missing_ok=True)
            file.close()


def _take(path: Path, holder: str) -> IO[str] | None:
    """The locked file; None where somebody else has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_ino != path.stat().st_ino:
            raise FileNotFoundError  # deleted by its last owner, and made anew by the next
    except (BlockingIOError, FileNotFoundError):
        file.close()
        return None
    file.truncate(0)  # the name of one that was killed
    file.write(holder)
    file.flush()
    return file


def _holder(path: Path) -> str | None:
    """Who has it, as far as is known at this moment."""
    try:
        return path.read_text(encoding="utf-8") or None
    except FileNotFoundError:
        return None
