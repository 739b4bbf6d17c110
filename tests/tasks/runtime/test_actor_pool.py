"""The pool of actors alone: work that becomes ready as other work finishes, deaths, and actors that are no longer needed."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import pytest

from dora_core.config.execution import Execution
from dora_core.errors import DataError, StageFailed
from infra.store.journal import JournalReader, JournalWriter
from infra.store.store import Store
from tasks.runtime.actor_pool import FLUSH_SECONDS, run_on_actors
from tasks.runtime.worker_failures import WorkerFailures

EXECUTION = Execution(workers=2, cpus_per_worker=1, max_failures=1)


class Squares:
    """An actor. Numbers in ``deadly`` kill it every time, negative ones once; 0 is an error of the code."""

    def __init__(self, folder: str, deadly: list[int]):
        self._folder, self._deadly = Path(folder), deadly

    def ready(self) -> None:
        return None

    def work(self, number: int, seconds: float) -> tuple[int, int]:
        mark = self._folder / f"died at {number}"
        if number in self._deadly or (number < 0 and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 0:
            raise DataError("zero has no business here", hint="leave it out")
        time.sleep(seconds)
        return number * number, os.getpid()


class Numbers:
    """Work. ``after``: numbers that become ready when another has finished."""

    def __init__(self, numbers: Iterable[int], after: dict[int, int] | None = None, seconds: float = 0.0):
        self.ready, self.after, self.seconds = deque(numbers), after or {}, seconds
        self.running: set[int] = set()
        self.aside: dict[int, StageFailed] = {}

    def has_ready(self) -> bool:
        return bool(self.ready)

    def expects_more(self) -> bool:
        return bool(self.running & self.after.keys())

    def take(self) -> int:
        number = self.ready.popleft()
        self.running.add(number)
        return number

    def task(self, item: int) -> tuple[int, float]:
        return item, self.seconds

    def describe(self, item: int) -> str:
        return f"number {item}"

    def give_back(self, item: int) -> None:
        self.running.remove(item)
        self.ready.appendleft(item)

    def set_aside(self, item: int, failure: StageFailed) -> None:
        self.running.remove(item)
        self.aside[item] = failure

    def finish(self, item: int) -> None:
        self.running.remove(item)
        if item in self.after:
            self.ready.append(self.after[item])


class Pool:
    """Runs work through the pool and keeps the answers, processes and attempts."""

    def __init__(self, folder: Path):
        self.store = Store(str(folder / "store"))
        stage = self.store.folder("toy", "0" * 64)
        self.folder, self.journal = folder, JournalWriter(stage)
        self.failures = WorkerFailures(EXECUTION.max_failures, "execution.toy", logging.getLogger("test"))
        self.squares: dict[int, int] = {}
        self.attempts: dict[int, int] = {}
        self.processes: set[int] = set()

    def run(self, numbers: Numbers, deadly: Iterable[int] = (), size: int = 2) -> None:
        arguments = (str(self.folder), list(deadly))
        options = {"size": size, "execution": EXECUTION, "failures": self.failures, "journal": self.journal}
        for one in run_on_actors(numbers, Squares, arguments, **options):
            self.squares[one.item], process = one.answer
            self.attempts[one.item] = one.attempt
            self.processes.add(process)
            numbers.finish(one.item)


@pytest.fixture
def pool(ray_cluster: None, tmp_path: Path) -> Pool:
    return Pool(tmp_path)


@pytest.mark.component
def test_work_that_becomes_ready_later_goes_to_the_actors_that_are_there(pool: Pool) -> None:
    pool.run(Numbers([1], after={1: 2, 2: 3, 3: 4}))
    assert pool.squares == {1: 1, 2: 4, 3: 9, 4: 16} and set(pool.attempts.values()) == {1}
    assert len(pool.processes) <= 2, "idle actors were kept as long as work could come"


@pytest.mark.component
def test_idle_actors_give_their_places_back_while_the_last_work_runs(pool: Pool) -> None:
    import ray

    def free_cpus() -> float:
        return ray.available_resources().get("CPU", 0.0)

    def wait_until(cpus: float) -> None:
        deadline = time.monotonic() + 30
        while free_cpus() != cpus and time.monotonic() < deadline:
            time.sleep(0.05)
        assert free_cpus() == cpus

    running = threading.Thread(target=pool.run, args=[Numbers([1], after={1: 2}, seconds=5.0)])
    running.start()
    wait_until(0.0)  # 2 is to come
    wait_until(1.0)
    assert pool.squares == {1: 1}, "the last work still runs"
    running.join()
    assert pool.squares == {1: 1, 2: 4}


@pytest.mark.fault(1)
@pytest.mark.component
def test_a_death_costs_one_attempt_and_its_actor_is_replaced(pool: Pool) -> None:
    pool.run(Numbers([1, -2, 3, 4], after={-2: 5}))
    assert pool.squares == {1: 1, -2: 4, 3: 9, 4: 16, 5: 25}
    assert pool.attempts == {1: 1, -2: 2, 3: 1, 4: 1, 5: 1}
    pool.failures.raise_set_aside()


@pytest.mark.fault(2)
@pytest.mark.component
def test_poison_work_is_set_aside_and_an_unhealthy_node_ends_the_step(pool: Pool) -> None:
    numbers = Numbers([7, 1, 2])
    pool.run(numbers, deadly=[7])
    assert pool.squares == {1: 1, 2: 4} and numbers.aside.keys() == {7}
    assert "killed every worker" in numbers.aside[7].message and "number 7 2 times" in numbers.aside[7].message
    with pytest.raises(StageFailed, match="number 7 2 times"):
        pool.failures.raise_set_aside()

    unhealthy = Pool(pool.folder)
    with pytest.raises(StageFailed, match="workers died in different places"):
        unhealthy.run(Numbers(range(1, 20)), deadly=range(1, 20))
    assert unhealthy.squares == {}


@pytest.mark.component
def test_an_error_of_the_code_is_raised_as_it_is(pool: Pool) -> None:
    with pytest.raises(DataError, match="zero has no business here") as caught:
        pool.run(Numbers([0]), size=1)
    assert caught.value.hint == "leave it out"


@pytest.mark.component
def test_the_journal_is_flushed_while_the_pool_waits(pool: Pool) -> None:
    pool.journal.progress(0, 10, "numbers")
    seen: list[int] = []
    numbers = Numbers([1], seconds=2.5 * FLUSH_SECONDS)
    arguments = (str(pool.folder), [])
    options = {"size": 1, "execution": EXECUTION, "failures": pool.failures, "journal": pool.journal}
    for _ in run_on_actors(numbers, Squares, arguments, **options):
        seen = [event["done"] for event in JournalReader(pool.store, "toy", "0" * 64).new_events()]
    assert seen == [0]
