"""Leases of stages on a store that machines share: a folder in place of a bucket, a store object and a cache for each machine."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from dora_core.errors import StoreError
from infra.store import leases
from infra.store.leases import Claim, free_leases, lease
from infra.store.locks import free_abandoned, ownership
from infra.store.store import Store
from tests.faults import Recovery
from tests.s3_server import BUCKET, s3_server

pytestmark = pytest.mark.fault(34)

NAME = "align-" + "0" * 64
HOLD = """
import sys, time
from tests.infra.store.test_leases import NAME, machine
from infra.store.leases import lease
from pathlib import Path
with lease(machine(Path(sys.argv[1]), "killed"), NAME, "first", is_done=lambda: False, on_wait=print):
    print("has it", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"BEAT_SECONDS": 0.02, "DEAD_SECONDS": 0.5, "LOOK_SECONDS": 0.02}.items():
        monkeypatch.setattr(leases, name, seconds)


def machine(folder: Path, name: str) -> Store:
    """The shared store as one machine sees it."""
    (folder / "bucket" / "prefix").mkdir(parents=True, exist_ok=True)
    store = Store(str(folder / name))
    store.remote = (pafs.SubTreeFileSystem(str(folder / "bucket"), pafs.LocalFileSystem()), "prefix")
    return store


def claims(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "bucket" / "prefix" / "leases").glob("*"))


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the claims that exist those of another machine."""
    monkeypatch.setattr(leases.socket, "gethostname", lambda: "another-machine")


def test_the_first_machine_computes_and_the_second_finds_it_done(tmp_path: Path) -> None:
    order, told, done = list[str](), list[str](), threading.Event()

    def second() -> None:
        store = machine(tmp_path, "two")
        with ownership(store, "align", "0" * 64, "second", is_done=done.is_set, on_wait=told.append) as is_done:
            order.append(f"second, done: {is_done}")

    one = machine(tmp_path, "one")
    with ownership(one, "align", "0" * 64, "first", is_done=done.is_set, on_wait=told.append) as is_done:
        assert not is_done and len(claims(tmp_path)) == 1
        other = threading.Thread(target=second)
        other.start()
        while not told:
            time.sleep(0.01)
        with ownership(one, "sft", "0" * 64, "first", is_done=lambda: False, on_wait=told.append) as is_done:
            assert not is_done, "another stage is not concerned"
        time.sleep(1.0)  # twice the time after which a claim without a beat is deleted
        order.append("first")
        done.set()
    other.join()
    assert order == ["first", "second, done: True"] and claims(tmp_path) == []
    assert len(told) == 1 and told[0].startswith("waits for first (process ") and told[0].endswith("), which computes the same align")


def test_two_never_hold_at_once_and_all_get_their_turn(tmp_path: Path) -> None:
    """Six machines that begin at the same moment, each of which adds to a counter that two holders would lose an addition of."""
    counter, start = tmp_path / "counter", threading.Barrier(6)
    counter.write_text("0")

    def work(number: int) -> None:
        store = machine(tmp_path, f"machine-{number}")
        start.wait()
        with lease(store, NAME, f"run-{number}", is_done=lambda: False, on_wait=lambda _: None):
            value = int(counter.read_text())
            time.sleep(0.05)
            counter.write_text(str(value + 1))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.read_text() == "6" and claims(tmp_path) == []


def killed_holder(folder: Path) -> str:
    """A claim of a process that was killed; returns its name in messages."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "has it\n"
    holder.kill()
    holder.wait()
    return f"first (process {holder.pid} on {leases.socket.gethostname()})"


def test_the_lease_of_a_killed_run_of_this_machine_is_taken_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "DEAD_SECONDS", 600.0)
    who, told = killed_holder(tmp_path), list[str]()
    with lease(machine(tmp_path, "two"), NAME, "second", is_done=lambda: False, on_wait=told.append):
        assert len(claims(tmp_path)) == 1
    assert told == [f"{who} was killed or is cut off from the store: its lease on align is deleted"]


def test_the_lease_of_a_killed_run_of_another_machine_is_taken_when_it_stays_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recovery: Recovery
) -> None:
    who, told = killed_holder(tmp_path), list[str]()
    elsewhere(monkeypatch)
    recovery.begins()
    with lease(machine(tmp_path, "two"), NAME, "second", is_done=lambda: False, on_wait=told.append):
        recovery.ends()
    assert told == [
        f"waits for {who}, which computes the same align",
        f"{who} was killed or is cut off from the store: its lease on align is deleted",
    ]


def test_a_sweep_deletes_the_leases_of_killed_runs_of_this_machine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_holder(tmp_path)
    store = machine(tmp_path, "two")
    with lease(store, "sft-" + "1" * 64, "alive", is_done=lambda: False, on_wait=print):
        with monkeypatch.context() as patch:
            elsewhere(patch)
            free_abandoned(store)
        assert len(claims(tmp_path)) == 2, "that machine may be alive"
        free_leases(store)
        assert [name.startswith("sft-") for name in claims(tmp_path)] == [True]
    assert claims(tmp_path) == []


def test_a_run_that_lost_its_lease_says_so_and_does_not_take_it_back(tmp_path: Path) -> None:
    told = list[str]()
    store = machine(tmp_path, "one")
    with lease(store, NAME, "first", is_done=lambda: False, on_wait=told.append):
        [path] = (tmp_path / "bucket" / "prefix" / "leases").iterdir()
        path.unlink()
        while not told:
            time.sleep(0.01)
        assert claims(tmp_path) == []
    assert len(told) == 1 and "was deleted by another run, which took this one for dead" in told[0]


def test_an_outage_of_the_store_kills_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The waiting machine's look takes longer than a lease may be silent: an outage, in which the holder could not beat either."""
    store, told = machine(tmp_path, "two"), list[str]()
    elsewhere_claim = Claim(owner="first", host="another-machine", process=leases.RecordedProcess.current())
    store.write_json(f"leases/{NAME}-{'0' * 32}.json", elsewhere_claim.model_dump(mode="json"))
    others = leases._Others(store, NAME, "leases/mine", told.append)
    clock = [100.0]
    monkeypatch.setattr(leases.time, "monotonic", lambda: clock[0])
    for passed in (0.0, 1000.0, 0.01, 2000.0):
        clock[0] += passed
        assert others.look()
    assert len(told) == 1 and told[0].startswith("waits for first (process ")
    while others.look():
        clock[0] += 0.05  # silence that is seen: .5 s of it in steps of .05 s
        assert clock[0] < 3200
    assert len(told) == 2 and claims(tmp_path) == []


def listing(store: Store, monkeypatch: pytest.MonkeyPatch, old: Callable[[list[str]], list[str]]) -> None:
    fresh = store.list
    monkeypatch.setattr(store, "list", lambda relative: old(fresh(relative)))


@pytest.mark.fault(27)
def test_a_listing_without_the_own_claim_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, looks = machine(tmp_path, "one"), list[int]()

    def late(names: list[str]) -> list[str]:
        looks.append(len(names))
        return [] if len(looks) < 6 else names

    listing(store, monkeypatch, late)
    with lease(store, NAME, "first", is_done=lambda: False, on_wait=print):
        assert len(looks) == 6
    listing(store, monkeypatch, lambda names: [])
    with (
        pytest.raises(StoreError, match=r"does not list leases/align-0+-\w+\.json") as error,
        lease(store, NAME, "first", is_done=lambda: False, on_wait=print),
    ):
        raise AssertionError("it has no lease")
    assert "read-after-write" in error.value.hint and claims(tmp_path) == []


def test_on_s3_one_machine_at_a_time_holds_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real client and server: three machines that begin at the same moment."""
    monkeypatch.setattr(leases, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(leases, "DEAD_SECONDS", 60.0)
    inside, most, start = list[str](), list[int](), threading.Barrier(3)
    with s3_server() as server:
        for name, value in (server.environment | {"DORA_CACHE": str(tmp_path)}).items():
            monkeypatch.setenv(name, value)

        def work(name: str) -> None:
            store = Store(f"s3://{BUCKET}/leases-of-machines")
            start.wait()
            with lease(store, NAME, name, is_done=lambda: False, on_wait=lambda _: None):
                inside.append(name)
                most.append(len(inside))
                time.sleep(0.2)
                inside.remove(name)

        threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two", "three")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == [1, 1, 1]
        assert [key for key in server.objects("leases-of-machines/leases/") if key.endswith(".json")] == []
