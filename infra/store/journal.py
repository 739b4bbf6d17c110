"""The stage journal: progress and metrics as small JSON-lines parts in the stage's folder.

A stage never calls MLflow or Prefect. It writes events here; the supervisor reads new parts while the stage runs, shows their progress,
and adds references to them to MLflow's outbox (``infra/tracking/outbox.py``), which reads the parts again when it sends them: the journal
is the one durable copy of a curve. So a dead tracking server cannot slow or kill training, nothing is lost, and the same code works on a
local folder and on S3 (parts are immutable; nothing is appended).
"""

from __future__ import annotations

import contextvars
import itertools
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, TypedDict

from dora_core.errors import StoreError
from infra.store.store import StageFolder, Store, write_atomic

FOLLOW_SECONDS = 1.0


class MetricsEvent(TypedDict):
    """Finite numbers at a step."""

    kind: Literal["metrics"]
    step: int
    values: dict[str, float]
    time: float


class ProgressEvent(TypedDict):
    """Units of work done, of ``total``; 0: unknown."""

    kind: Literal["progress"]
    done: int
    total: int
    unit: str
    note: str
    time: float


class NoticeEvent(TypedDict):
    """A sentence for people that cannot wait for the stage's end: a node is lost, a checkpoint was written before its time."""

    kind: Literal["notice"]
    text: str
    time: float


JournalEvent = MetricsEvent | ProgressEvent | NoticeEvent
"""A line of the journal; ``time`` is in epoch seconds."""


class JournalWriter:
    """Buffers events and writes a part at most every ``flush_seconds``; the last ones go out with :meth:`flush`.

    Part names begin with the time of creation and the process id, so a restarted stage never overwrites its first attempt.
    """

    def __init__(self, folder: StageFolder, *, flush_seconds: float = 2.0):
        self._folder, self._flush_seconds = folder, flush_seconds
        self._prefix = f"{time.time_ns():020d}-{os.getpid()}"
        self._events: list[JournalEvent] = []
        self._part = 0
        self._last_flush = time.monotonic()
        self._lock = threading.Lock()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        finite = {name: float(v) for name, v in values.items() if math.isfinite(v)}
        self._add({"kind": "metrics", "step": int(step), "values": finite, "time": time.time()})

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        self._add({"kind": "progress", "done": int(done), "total": int(total), "unit": unit, "note": note, "time": time.time()})
        if done >= total:
            self.flush()

    def notice(self, text: str) -> None:
        """Write a sentence at once."""
        self._add({"kind": "notice", "text": text, "time": time.time()})
        self.flush()

    def flush(self) -> None:
        with self._lock:
            self._write()

    def _add(self, event: JournalEvent) -> None:
        with self._lock:
            self._events.append(event)
            if time.monotonic() - self._last_flush >= self._flush_seconds:
                self._write()

    def _write(self) -> None:
        self._last_flush = time.monotonic()
        if not self._events:
            return
        name = f"journal/{self._prefix}-{self._part:06d}.jsonl"
        write_atomic(self._folder.path / name, "".join(json.dumps(e) + "\n" for e in self._events))
        self._folder.commit(name)
        self._events, self._part = [], self._part + 1


@dataclass(frozen=True)
class JournalPart:
    """One part of a stage's journal.

    Attributes:
        store: URI of the store.
        name: path below it, ``align/<digest>/journal/….jsonl``.
    """

    store: str
    name: str
    events: list[JournalEvent]


def read_part(store: Store, name: str) -> JournalPart:
    """Read one part, from the copy on this machine where a remote store has one.

    Raises:
        FileNotFoundError: the part is not in the store. ValueError: it is damaged. StoreError: the name leads out of the store.
    """
    path = store.local(name)
    if not path.is_file():
        path = store.download(name)
    return JournalPart(store.uri, name, [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])


def newest_events(store: Store, stage: str, digest: str) -> list[JournalEvent]:
    """Read the newest journal part of every writer (``<start>-<process>-<part>.jsonl``), events oldest first; empty if there is none."""
    folder = f"{stage}/{digest}/journal"
    newest = {name.rsplit("-", 1)[0]: name for name in store.list(folder) if name.endswith(".jsonl")}  # sorted: the last part wins
    lines = [line for name in newest.values() for line in store.download(f"{folder}/{name}").read_text(encoding="utf-8").splitlines()]
    events: list[JournalEvent] = [json.loads(line) for line in lines]
    return sorted(events, key=lambda event: event["time"])


class JournalReader:
    """Reads the parts not read before, oldest first. ``seen`` may be saved to resume a replay."""

    def __init__(self, store: Store, stage: str, digest: str, seen: set[str] | None = None):
        self._store, self._folder = store, f"{stage}/{digest}/journal"
        self.seen = set() if seen is None else seen

    def new_parts(self, *, ended: bool = False) -> Iterator[JournalPart]:
        """Yield the parts not read before.

        Args:
            ended: nothing more is written: parts that a remote store does not list yet are looked for by their numbers.
        """
        names = [name for name in self._store.list(self._folder) if name.endswith(".jsonl")]
        if ended and self._store.remote is not None:
            names += self._unlisted(names)
        for name in names:
            if name not in self.seen:
                yield read_part(self._store, f"{self._folder}/{name}")
                self.seen.add(name)

    def _unlisted(self, names: list[str]) -> Iterator[str]:
        last: dict[str, int] = {}
        for name in [*self.seen, *names]:
            writer, _, part = name.removesuffix(".jsonl").rpartition("-")
            last[writer] = max(last.get(writer, 0), int(part))
        for writer, number in last.items():
            for following in itertools.count(number + 1):
                name = f"{writer}-{following:06d}.jsonl"
                if not self._store.has(f"{self._folder}/{name}"):
                    break
                yield name

    def new_events(self) -> Iterator[JournalEvent]:
        for part in self.new_parts():
            yield from part.events

    @contextmanager
    def following(self, on_part: Callable[[JournalPart], None]) -> Iterator[None]:
        """Call ``on_part`` with new parts every second while the block runs, and with the rest at its end.

        The thread has the caller's context, from which Prefect takes the task run that an artifact belongs to.
        """
        ended = threading.Event()

        def read(ended: bool = False) -> None:
            for part in self.new_parts(ended=ended):
                on_part(part)

        def follow() -> None:
            while not ended.wait(FOLLOW_SECONDS):
                with suppress(OSError, StoreError):  # a transient error of the store: the next read, or the last one, repeats this part
                    read()

        name = f"journal of {self._folder}"
        thread = threading.Thread(target=contextvars.copy_context().run, args=(follow,), name=name, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            read(ended=True)
