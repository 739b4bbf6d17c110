"""One run computes a stage; the others wait, and go on after its death."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from infra.store.locks import free_abandoned, ownership
from infra.store.store import Store
from tests.faults import Recovery

pytestmark = pytest.mark.fault(16)

DIGEST = "0" * 64
HOLD = """
import sys, time
from infra.store.locks import ownership
from infra.store.store import Store
with ownership(Store(sys.argv[1]), "align", "0" * 64, "first", is_done=lambda: False, on_wait=print):
    print("has it", flush=True)
    time.sleep(600)
"""


def locks(store: Store) -> list[Path]:
    return list((store.local_root / "locks").iterdir())


def test_a_stage_is_computed_by_one_and_found_done_by_the_other(tmp_path: Path) -> None:
    store, told, order, done = Store(str(tmp_path)), list[str](), list[str](), threading.Event()

    def second() -> None:
        with ownership(store, "align", DIGEST, "second", is_done=done.is_set, on_wait=told.append) as is_done:
            order.append(f"second, done: {is_done}")

    with ownership(store, "align", DIGEST, "first", is_done=done.is_set, on_wait=told.append) as is_done:
        assert not is_done
        other = threading.Thread(target=second)
        other.start()
        while not told:
            time.sleep(0.01)
        order.append("first")
        with ownership(store, "sft", DIGEST, "first", is_done=lambda: False, on_wait=told.append) as is_done:
            assert not is_done, "another stage is not concerned"
        done.set()
    other.join()
    assert order == ["first", "second, done: True"]
    assert len(told) == 1 and told[0].startswith("waits for first (process ") and told[0].endswith("), which computes the same align")
    assert locks(store) == []


def test_who_is_killed_owns_nothing_any_more(tmp_path: Path, recovery: Recovery) -> None:
    store, told = Store(str(tmp_path)), list[str]()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "has it\n"

    def kill(sentence: str) -> None:
        told.append(sentence)
        holder.kill()
        recovery.begins()

    with ownership(store, "align", DIGEST, "second", is_done=lambda: False, on_wait=kill) as is_done:
        recovery.ends()
        assert not is_done and told == [f"waits for first (process {holder.pid}), which computes the same align"]
    holder.wait()
    assert locks(store) == []


def test_the_lock_of_one_that_was_killed_goes_and_that_of_a_live_one_stays(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "has it\n"
    free_abandoned(store)
    assert [path.name for path in locks(store)] == [f"align-{DIGEST}"]
    holder.kill()
    holder.wait()
    free_abandoned(store)
    assert locks(store) == []


def test_of_many_only_one_is_inside(tmp_path: Path) -> None:
    """The owner deletes the file and the next one creates it again: a lock on the old file must not count."""
    store, inside, most = Store(str(tmp_path)), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(3):
            with ownership(store, "align", DIGEST, "one", is_done=lambda: False, on_wait=lambda _: None):
                inside += 1
                most = max(most, inside)
                time.sleep(0.01)
                inside -= 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("infra.store.locks.LOOK_SECONDS", 0.001)
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == 1 and locks(store) == []
