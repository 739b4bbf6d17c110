"""A pool of Ray actors: start, assign, replace. Used for shards of rows (``tasks/runtime/shards.py``) and for the stages of a batch
(``tasks/stages/batch.py``), which implement :class:`Work`, the queue.

One piece of work per actor is in flight. It is only assigned to an actor that has started, so that two steps that share a cluster cannot
deadlock. Work may become ready while other work finishes.

Failure policy: the *death* of an actor (kill −9, out of memory, a lost node) returns its work, and another actor takes its place
(``tasks/runtime/worker_failures.py`` has the bounds). An *exception* of the actor's code is raised as it is. Ray moves objects to disk
when its object store is full; where it cannot, the step ends with the key to lower.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from dora_core.config.execution import Execution
from dora_core.errors import StageFailed
from infra.store.journal import JournalWriter
from tasks.runtime.cluster import check_fits, ray_session
from tasks.runtime.worker_failures import WorkerFailures

FLUSH_SECONDS = 2.0
"""Interval of journal flushes while no work finishes."""

Item = TypeVar("Item")


class Work(Protocol[Item]):
    """Source of a pool's work; called from one thread."""

    def has_ready(self) -> bool:
        """Whether :meth:`take` returns a piece of work now."""

    def expects_more(self) -> bool:
        """Whether work may become ready later, so that idle actors are kept."""

    def take(self) -> Item:
        """Return the next piece of work."""

    def task(self, item: Item) -> tuple[Any, ...]:
        """Return the arguments of the actor's method ``work``."""

    def describe(self, item: Item) -> str:
        """Return a unique description: ``rows 0 to 10``."""

    def give_back(self, item: Item) -> None:
        """Return a piece to the queue after the death of its actor."""

    def set_aside(self, item: Item, failure: StageFailed) -> None:
        """Give up a piece that killed too many actors."""


@dataclass(frozen=True)
class Finished(Generic[Item]):
    """A finished piece of work. ``attempt`` counts from 1; ``answer`` is that of the actor."""

    item: Item
    answer: Any
    attempt: int


def run_on_actors(
    work: Work[Item],
    actor: type,
    arguments: Sequence[Any],
    *,
    size: int,
    execution: Execution,
    failures: WorkerFailures,
    journal: JournalWriter,
) -> Generator[Finished[Item]]:
    """Yield work as it finishes. All actors have ended when the iterator ends or is closed.

    Args:
        actor: class with the methods ``ready()`` and ``work(*task)``.
        arguments: of its constructor.
        size: actors at a time.
        execution: ``cpus_per_worker`` and ``gpus_per_worker`` of each.
        journal: flushed while the pool waits.

    Raises:
        StageFailed: an unhealthy node. ServiceError: no node is big enough for an actor.
    """
    import ray

    with ray_session():
        check_fits(execution)
        actor_class = ray.remote(actor).options(num_cpus=execution.cpus_per_worker, num_gpus=execution.gpus_per_worker, max_restarts=0)
        pool = _Pool(work, lambda: actor_class.remote(*arguments), failures)
        try:
            for _ in range(size):
                pool.start()
            while work.has_ready() or pool.is_working:
                pool.assign()
                done, _ = ray.wait(list(pool.running), num_returns=1, timeout=FLUSH_SECONDS)
                journal.flush()
                for reference in done:
                    if (finished := pool.collect(reference)) is not None:
                        yield finished
        finally:
            pool.kill()


class _Pool(Generic[Item]):
    """Actors and the work that each has in flight.

    Attributes:
        running: (actor, work) by the reference of its answer; work of None: the actor is starting.
    """

    def __init__(self, work: Work[Item], new_actor: Callable[[], Any], failures: WorkerFailures):
        self._work, self._new_actor, self._failures = work, new_actor, failures
        self._started: list[Any] = []  # every actor ever started: a traceback would keep a forgotten one, and its place, alive
        self._idle: list[Any] = []
        self._attempts: dict[str, int] = {}
        self.running: dict[Any, tuple[Any, Item | None]] = {}

    @property
    def is_working(self) -> bool:
        return any(item is not None for _, item in self.running.values())

    def start(self) -> None:
        """Start an actor; it is assigned work once it is ready."""
        handle = self._new_actor()
        self._started.append(handle)
        self.running[handle.ready.remote()] = (handle, None)

    def assign(self) -> None:
        """Give ready work to idle actors; end those that no work is expected for."""
        import ray

        while self._idle and self._work.has_ready():
            item, handle = self._work.take(), self._idle.pop()
            place = self._work.describe(item)
            self._attempts[place] = self._attempts.get(place, 0) + 1
            with self._failures.object_store():
                self.running[handle.work.remote(*self._work.task(item))] = (handle, item)
        if not self._work.expects_more():
            while self._idle:
                ray.kill(self._idle.pop())  # gives its place to other stages while the last work runs

    def collect(self, reference: Any) -> Finished[Item] | None:
        """Take an answer and assign more work; replace the actor if it died. None: no work has finished.

        Raises:
            StageFailed: an unhealthy node. Any exception of the actor's code.
        """
        import ray
        from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

        handle, item = self.running.pop(reference)
        place = None if item is None else self._work.describe(item)
        try:
            with self._failures.object_store():
                answer = ray.get(reference)
        except (RayActorError, OutOfMemoryError) as error:  # the latter where Ray's own memory monitor killed it
            again = self._failures.record(place, error)
            if item is not None and place is not None:
                if again:
                    self._work.give_back(item)
                else:
                    self._work.set_aside(item, self._failures.failure_of(place))
            ray.kill(handle)  # one that only the network has lost lives on, and holds the place of the next
            self.start()
            return None
        except RayTaskError as error:
            with self._failures.object_store():
                raise error.cause from error  # the code's own exception, not Ray's wrapping
        self._idle.append(handle)
        self.assign()
        return None if item is None or place is None else Finished(item, answer, self._attempts.pop(place))

    def kill(self) -> None:
        """End every actor."""
        import ray

        for handle in self._started:
            ray.kill(handle)
