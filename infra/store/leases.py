"""Lease of a stage on a remote store: one run on any machine computes it. Needs no server and no conditional writes.

A run *claims* a stage by writing ``leases/<stage>-<digest>-<id>.json``, and then lists the claims. If it is alone, it holds the lease;
otherwise it deletes its claim and waits, the smaller id for a shorter time. Of two writers the later one sees both claims, so two runs
never hold one lease. A listing that lacks the run's own claim is out of date and counts for nothing.

A holder counts up in its claim every :data:`BEAT_SECONDS`. A claim whose counter does not move for :data:`DEAD_SECONDS` belongs to a
killed run and is deleted by whoever waits for it; on the machine of that run at once, when its process is gone. A waiting run measures
this by its own monotonic clock and only while the store answers: clocks of two machines are never compared, and an outage of the store
kills no lease.

A run that was cut off or stopped for longer, and finds its claim deleted, goes on and says so: its result has the same bytes, but two
trainings may then have written checkpoints at the same time.
"""

from __future__ import annotations

import contextvars
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from pydantic import ValidationError

from dora_core.errors import StoreError
from dora_core.strict_model import StrictModel
from infra.processes import RecordedProcess
from infra.store.deletion import delete_file
from infra.store.store import Store

FOLDER = "leases"
BEAT_SECONDS = 20.0
DEAD_SECONDS = 90.0
LOOK_SECONDS = 2.0


class Claim(StrictModel):
    """Content of a claim.

    Attributes:
        beat: counts up while the holder lives.
    """

    owner: str
    host: str
    process: RecordedProcess
    beat: int = 0

    def __str__(self) -> str:
        return f"{self.owner} (process {self.process.pid} on {self.host})"

    def is_dead(self) -> bool:
        """Whether its process is known to be gone: False for one on another machine."""
        return self.host == socket.gethostname() and not self.process.alive()


@contextmanager
def lease(store: Store, name: str, owner: str, *, is_done: Callable[[], bool], on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the lease ``name`` (``"<stage>-<digest>"``) while the block runs; waits for others, unless the stage is done by then.

    Args:
        owner: name of this run, for others.
        on_wait: called with one sentence per run that this one waits for, and about claims of killed runs and the loss of its own.

    Raises:
        StoreError: the store does not answer, or does not list what was written.
    """
    claim = Claim(owner=owner, host=socket.gethostname(), process=RecordedProcess.current(owner))
    file = f"{FOLDER}/{name}-{uuid.uuid4().hex}.json"
    others, held = _Others(store, name, file, on_wait), False
    while not held and not is_done():
        if others.look():
            time.sleep(LOOK_SECONDS)
            continue
        _write(store, file, claim)
        first = others.files(own=True)
        held = first == [file]
        if not held:
            _delete(store, file)
            time.sleep(LOOK_SECONDS * (random.random() / 2 + (file != first[0])))
    ended = threading.Event()
    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(_beat, store, file, claim, ended, on_wait), name=f"lease {name}", daemon=True
    )
    if held:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if held:
            thread.join()
            with suppress(OSError, StoreError):  # the store is away: the claim dies
                _delete(store, file)


def free_leases(store: Store) -> None:
    """Delete the claims of killed processes of this machine."""
    for name in store.list(FOLDER):
        claim = _read(store, f"{FOLDER}/{name}")
        if claim is not None and claim.is_dead():
            _delete(store, f"{FOLDER}/{name}")


@dataclass
class _Others:
    """The claims of other runs, as a waiting run sees them.

    Attributes:
        own: this run's file.
    """

    store: Store
    name: str
    own: str
    on_wait: Callable[[str], None]
    _named: set[str] = field(default_factory=set)
    _still: dict[str, tuple[int, float]] = field(default_factory=dict)
    _looked: float | None = None

    @property
    def _stage(self) -> str:
        return self.name.rpartition("-")[0]

    def files(self, *, own: bool = False) -> list[str]:
        """List the claims, sorted.

        Args:
            own: list again until this run's claim is among them.

        Raises:
            StoreError: it never was.
        """
        waited = 0.0
        while True:
            found = [f"{FOLDER}/{file}" for file in self.store.list(FOLDER) if file.startswith(f"{self.name}-")]
            if not own or self.own in found:
                return found
            if waited >= DEAD_SECONDS:
                _delete(self.store, self.own)
                raise StoreError(
                    f"{self.store.uri} does not list {self.own}, written {waited:.0f} s ago",
                    hint="its listings are out of date, so two runs could compute the same stage without noticing; use a store with "
                    "read-after-write consistency, as S3 has",
                )
            time.sleep(LOOK_SECONDS)
            waited += LOOK_SECONDS

    def look(self) -> bool:
        """Whether another run holds the lease or claims it; deletes the claims of dead ones."""
        now = time.monotonic()
        # An outage, or a stop of this process, is time in which nothing was seen of the others either.
        passed = 0.0 if self._looked is None else min(now - self._looked, 3 * LOOK_SECONDS)
        self._looked, living = now, False
        for file in self.files():
            claim = _read(self.store, file)
            if claim is None:
                continue  # deleted meanwhile
            beat, still = self._still.get(file, (claim.beat, 0.0))
            still = still + passed if beat == claim.beat else 0.0
            self._still[file] = claim.beat, still
            if claim.is_dead() or still > DEAD_SECONDS:
                self.on_wait(f"{claim} was killed or is cut off from the store: its lease on {self._stage} is deleted")
                _delete(self.store, file)
                continue
            living = True
            if file not in self._named:
                self._named.add(file)
                self.on_wait(f"waits for {claim}, which computes the same {self._stage}")
        return living


def _beat(store: Store, file: str, claim: Claim, ended: threading.Event, on_wait: Callable[[str], None]) -> None:
    beat = claim.beat
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError, StoreError):  # the store is away: the next time
            if not store.has(file):  # writing it again would take the lease from its new holder
                on_wait(f"the lease {file} was deleted by another run, which took this one for dead; both compute the same result now")
                return
            beat += 1
            _write(store, file, claim.evolve(beat=beat))


def _read(store: Store, file: str) -> Claim | None:
    content = store.read_json(file)
    try:
        return None if content is None else Claim.model_validate(content)
    except ValidationError as error:
        raise StoreError(f"{store.uri}/{file} is not a lease of this release", hint="delete it when no run uses the store") from error


def _write(store: Store, file: str, claim: Claim) -> None:
    store.write_json(file, claim.model_dump(mode="json"))


def _delete(store: Store, file: str) -> None:
    with suppress(FileNotFoundError):  # by another run, at the same moment
        delete_file(store, file)
    if store.remote is not None:
        store.local(file).unlink(missing_ok=True)
