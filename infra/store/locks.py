"""Lock of a stage: one run at a time computes it. Others wait, with the holder's name in a message, and then find it done.

On a local store the lock is an advisory ``flock`` on ``<store>/locks/<stage>-<digest>``. The kernel frees it when its process ends, in
whatever way; the file contains the holder's name and is deleted with the lock. On a remote store, which several machines may share, it is a
lease (``infra/store/leases.py``).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from infra.store.leases import free_leases, lease
from infra.store.store import Store

LOOK_SECONDS = 0.5


@contextmanager
def ownership(
    store: Store, stage: str, digest: str, owner: str, *, is_done: Callable[[], bool], on_wait: Callable[[str], None]
) -> Iterator[bool]:
    """Hold a stage while the block runs; waits while another run does, unless the stage is done by then.

    Args:
        owner: name of this run, shown to runs that wait for it.
        is_done: whether the stage's result is valid.
        on_wait: called with one sentence per run that this one waits for, and one if this run's lease is lost.

    Yields:
        Whether the stage is done, so that there is nothing to compute.
    """
    if store.remote is not None:
        with lease(store, f"{stage}-{digest}", owner, is_done=is_done, on_wait=on_wait):
            yield is_done()
        return
    path, named = store.local(f"locks/{stage}-{digest}"), None
    while (file := _take(path, f"{owner} (process {os.getpid()})")) is None and not is_done():
        other = _holder(path)
        if other is not None and other != named:
            on_wait(f"waits for {other}, which computes the same {stage}")
            named = other
        time.sleep(LOOK_SECONDS)
    try:
        yield is_done()
    finally:
        if file is not None:
            path.unlink(missing_ok=True)  # while the lock is held: a later process opens another file, or none
            file.close()


def free_abandoned(store: Store) -> None:
    """Delete the locks of killed owners of this machine, unless another run holds the lock."""
    if store.remote is not None:
        free_leases(store)
        return
    for name in store.list("locks"):
        path = store.local(f"locks/{name}")
        if (file := _take(path, "")) is not None:
            path.unlink(missing_ok=True)
            file.close()


def _take(path: Path, holder: str) -> IO[str] | None:
    """Lock and return the file; None if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_ino != path.stat().st_ino:
            raise FileNotFoundError  # deleted by its last owner, and created again by the next
    except (BlockingIOError, FileNotFoundError):
        file.close()
        return None
    file.truncate(0)  # the name of a killed holder
    file.write(holder)
    file.flush()
    return file


def _holder(path: Path) -> str | None:
    """Return the current holder's name, None if it is unknown."""
    try:
        return path.read_text(encoding="utf-8") or None
    except FileNotFoundError:
        return None
