"""The stage journal: progress and metrics as small JSON-lines parts in the stage's folder.

A stage never talks to MLflow or Prefect. It writes events here; the supervisor reads new parts while the stage runs and
replays them. So a dead tracking server cannot slow or kill training, nothing is lost, and the same code works on a
local folder and on S3 (parts are immutable, there is no append).

Event kinds: ``{"kind": "metrics", "step": int, "values": {name: float}, "time": float}`` and
``{"kind": "progress", "done": int, "total": int, "unit": str, "note": str, "time": float}``.
"""

from __future__ import annotations

import contextvars
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from infra.store.store import StageFolder, Store, write_atomic

FOLLOW_SECONDS = 1.0


class JournalWriter:
    """Buffers events and writes a part at most every ``flush_seconds``; the last ones go out with :meth:`flush`.

    Part names begin with the time of creation and the process, so a restarted stage never overwrites its first try.
    """

    def __init__(self, folder: StageFolder, *, flush_seconds: float = 2.0):
        self._folder, self._flush_seconds = folder, flush_seconds
        self._prefix = f"{time.time_ns():020d}-{os.getpid()}"
        self._events: list[dict[str, Any]] = []
        self._part = 0
        self._last_flush = time.monotonic()
        self._lock = threading.Lock()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        finite = {name: float(v) for name, v in values.items() if math.isfinite(v)}
        self._add({"kind": "metrics", "step": int(step), "values": finite})

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        self._add({"kind": "progress", "done": int(done), "total": int(total), "unit": unit, "note": note})
        if done >= total:
            self.flush()

    def flush(self) -> None:
        with self._lock:
            self._write()

    def _add(self, event: dict[str, Any]) -> None:
        with self._lock:
            self._events.append(event | {"time": time.time()})
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


class JournalReader:
    """Yields the events of parts not read before, oldest first. ``seen`` may be saved to resume a replay."""

    def __init__(self, store: Store, stage: str, digest: str, seen: set[str] | None = None):
        self._store, self._folder = store, f"{stage}/{digest}/journal"
        self.seen = set() if seen is None else seen

    def new_events(self) -> Iterator[dict[str, Any]]:
        for name in self._store.list(self._folder):
            if name.endswith(".jsonl") and name not in self.seen:
                lines = self._store.download(f"{self._folder}/{name}").read_text(encoding="utf-8").splitlines()
                yield from (json.loads(line) for line in lines)
                self.seen.add(name)

    @contextmanager
    def following(self, on_events: Callable[[list[dict[str, Any]]], None]) -> Iterator[None]:
        """Hands new events to ``on_events`` every second while the block runs, and the rest at its end.

        The thread has the caller's context, which tells Prefect to which task run an artifact belongs.
        """
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(FOLLOW_SECONDS):
                with suppress(OSError):  # the store hiccups: the next look, or the last one, reads the same parts
                    on_events(list(self.new_events()))

        name = f"journal of {self._folder}"
        thread = threading.Thread(target=contextvars.copy_context().run, args=(follow,), name=name, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            on_events(list(self.new_events()))
