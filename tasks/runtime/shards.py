"""Sharded inference over a stream of rows: deterministic shards, markers, resume.

Rows are cut into shards by position, however the stream was batched: a sixteenth of the rows that are left, at most
``execution.shard_rows`` and at least :data:`SMALLEST`, so there are several for each worker and the last ones, which the others wait for,
are small ("guided self-scheduling", Polychronopoulos & Kuck 1987, with a fixed number of workers). The cut depends on the number of rows
alone and a shard's output on its rows and the worker's arguments, so the number of workers, their deaths and restarts never change a
byte of the result. (Where the accelerator ran out of memory, results are the same up to rounding, and the result has a warning.)

Memory does not grow with the rows: a shard is cut when an actor is free for it (one more waits), and results are read back from
disk one by one, in the order of the rows.

Each finished shard is two files in ``scratch/<name>/``: ``<first>-<last>.parquet``, written to a temporary name, fsynced,
renamed; then its marker ``….json`` (rows, sha256 of the data, sha256 of the input rows, min/max/NaN count per float column,
attempt, seconds, tokens per batch where memory lowered them). A shard is done when its marker agrees with both its data and its input;
anything else is computed again.
The folder survives a crash, on a remote store too (each file is committed as soon as it is final), and is bookkeeping:
never listed in ``result.json``, free to delete once that exists.

Failure policy: that of ``tasks/runtime/actor_pool.py``: the *death* of an actor costs the shard it held, which another actor takes; a
poison shard, which kills one worker after another, is set aside, and the step fails for it when the others are finished. An *exception* of
the worker is a fault of code or data and is raised as it is. Finished shards are kept in any case.

Left out: work stealing and several shards in flight per actor. Shards are minutes, a round trip is milliseconds.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dora_core.config.execution import Execution
from dora_core.errors import StageFailed
from infra.store.store import replacing, sha256_file
from tasks.runtime.actor_pool import run_on_actors
from tasks.runtime.stage import StageContext
from tasks.runtime.worker_failures import WorkerFailures
from tasks.runtime.workers import BuildWorker, Worker, use_threads
from tasks.tables.rows import rebatch

if TYPE_CHECKING:
    import pyarrow as pa

SMALLEST = 32  # rows of a shard; fewer would leave batches half empty
PLACES = 16  # a shard is this share of the rows that are left


@dataclass(frozen=True)
class Shard:
    """Rows [start, stop) of the input, as an Arrow IPC stream, which actors receive and the marker's checksum covers."""

    start: int
    stop: int
    ipc: bytes

    @property
    def name(self) -> str:
        return f"{self.start:012d}-{self.stop:012d}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.ipc).hexdigest()


@dataclass(frozen=True)
class Computed:
    """The output of one shard.

    Attributes:
        attempt: counts from 1 within this run of the stage.
        batch_tokens: the worker's lowered budget; None where all batches fitted into memory.
    """

    shard: Shard
    table: pa.Table
    seconds: float
    attempt: int
    batch_tokens: int | None


def run_shards(context: StageContext, rows: pa.Table, *, name: str, worker: BuildWorker, execution: Execution, unit: str) -> pa.Table:
    """:func:`stream_shards` for a table that fits in memory, with a result that does too."""
    import pyarrow as pa

    return pa.concat_tables(stream_shards(context, [rows], total=rows.num_rows, name=name, worker=worker, execution=execution, unit=unit))


def stream_shards(
    context: StageContext,
    rows: Iterable[pa.Table],
    *,
    total: int,
    name: str,
    worker: BuildWorker,
    execution: Execution,
    unit: str,
) -> Iterator[pa.Table]:
    """Map a worker over ``rows``, shard by shard; yields one table per shard, rows in the order of input rows.

    Args:
        rows: the input as tables of one schema and any size, read while shards are computed; every column goes to the worker.
        total: number of input rows, for the progress bar.
        name: folder of the shards, unique within the stage.
        worker: makes the worker (``tasks/runtime/workers.py``), once per actor. A budget that it had to lower becomes a warning of the
            stage.
        execution: ``workers`` actors at most, each with ``cpus_per_worker`` and ``gpus_per_worker``; 0 = in this process.
        unit: name of a row in the progress bar.

    Raises:
        StageFailed: poison shards, or too many deaths of actors.
        ServiceError: no node of the cluster is big enough for a worker.
    """
    stored, finished, reused = StoredShards(context, name), 0, 0
    waiting: deque[Shard] = deque()  # shards that are cut and not yielded, without their rows
    done: set[int] = set()  # starts of shards on disk

    def incomplete() -> Iterator[Shard]:
        nonlocal finished, reused
        for shard in cut(rows, shard_sizes(total, execution.shard_rows)):
            waiting.append(Shard(shard.start, shard.stop, b""))
            if not stored.is_done(shard):
                yield shard
                continue
            done.add(shard.start)
            finished, reused = finished + shard.stop - shard.start, reused + shard.stop - shard.start
            context.progress(finished, total, unit, name)

    def ready() -> Iterator[pa.Table]:
        while waiting and waiting[0].start in done:
            shard = waiting.popleft()
            done.remove(shard.start)
            yield stored.read(shard)

    context.progress(0, total, unit, name)
    if execution.workers == 0:
        results = _in_process(incomplete(), worker)
    else:
        results = _on_actors(incomplete(), worker, execution, context, sum(1 for _ in shard_sizes(total, execution.shard_rows)), unit)
    for computed in results:
        stored.mark_done(computed)
        done.add(computed.shard.start)
        finished += computed.table.num_rows
        context.progress(finished, total, unit, name)
        yield from ready()
    yield from ready()
    if stored.batch_tokens is not None:
        context.warn(
            f"{name}: the accelerator's memory did not hold {execution.batch_tokens} tokens, so batches were cut to {stored.batch_tokens}: "
            f"set batch_tokens of execution.{context.folder.stage} to that"
        )
    if reused:
        context.log.info("%s: %d of %d %s were there from an earlier attempt", name, reused, total, unit)


def shard_sizes(total: int, most: int) -> Iterator[int]:
    """Rows of each shard of ``total`` rows, ``most`` ≥ 1 at most; one empty shard of no rows. See the module docstring."""
    left = total
    while True:
        size = min(most, max(SMALLEST, left // PLACES))
        yield size
        left -= size
        if left <= 0:
            return


def cut(tables: Iterable[pa.Table], sizes: Iterator[int]) -> Iterator[Shard]:
    """Yield consecutive shards of these numbers of rows; the last may be smaller. An empty table is one empty shard (it has a schema)."""
    import numpy as np

    start = 0
    for rows in rebatch(tables, sizes):
        copied = rows.combine_chunks().take(np.arange(rows.num_rows))  # a slice shares buffers, which would show in the bytes
        yield Shard(start, start + rows.num_rows, _to_ipc(copied))
        start += rows.num_rows


class StoredShards:
    """Finished shards of one sharded step, verified by checksums; see the module docstring.

    Attributes:
        batch_tokens: the smallest lowered budget of any shard; None where memory lowered none.
    """

    def __init__(self, context: StageContext, name: str):
        self._context, self._folder = context, f"scratch/{name}"
        (context.path / self._folder).mkdir(parents=True, exist_ok=True)
        self.batch_tokens: int | None = None

    def is_done(self, shard: Shard) -> bool:
        """Whether the marker exists and agrees with the input rows and the data's checksum."""
        store, prefix = self._context.store, f"{self._context.folder.stage}/{self._context.folder.digest}"
        marker = store.read_json(f"{prefix}/{self._marker(shard)}")
        if not isinstance(marker, dict) or marker.get("input_sha256") != shard.sha256:
            return False
        data = self._context.path / self._data(shard)
        if not data.exists() and store.has(f"{prefix}/{self._data(shard)}"):
            store.download(f"{prefix}/{self._data(shard)}")
        if not data.exists() or sha256_file(data) != marker.get("sha256"):
            return False
        self._note(marker.get("batch_tokens"))
        return True

    def mark_done(self, computed: Computed) -> None:
        """Write the data, then the marker; both durable, both atomic."""
        import pyarrow.parquet as pq

        data = self._context.path / self._data(computed.shard)
        with replacing(data) as file:
            pq.write_table(computed.table, file, compression="zstd")
        self._context.folder.commit(self._data(computed.shard))
        marker = {
            "rows": computed.table.num_rows,
            "sha256": sha256_file(data),
            "input_sha256": computed.shard.sha256,
            "columns": float_ranges(computed.table),
            "attempt": computed.attempt,
            "seconds": round(computed.seconds, 3),
            "batch_tokens": computed.batch_tokens,
        }
        self._context.folder.write_json(self._marker(computed.shard), marker)
        self._note(computed.batch_tokens)

    def read(self, shard: Shard) -> pa.Table:
        import pyarrow.parquet as pq

        return pq.read_table(self._context.path / self._data(shard))

    def _note(self, batch_tokens: int | None) -> None:
        self.batch_tokens = min((n for n in (self.batch_tokens, batch_tokens) if n is not None), default=None)

    def _data(self, shard: Shard) -> str:
        return f"{self._folder}/{shard.name}.parquet"

    def _marker(self, shard: Shard) -> str:
        return f"{self._folder}/{shard.name}.json"


def float_ranges(table: pa.Table) -> dict[str, dict[str, float | int | None]]:
    """``{column: {min, max, nan}}`` of float columns; min and max over finite values, ``None`` where there are none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ranges = {}
    for field in table.schema:
        if pa.types.is_floating(field.type):
            column = table[field.name]
            extremes = pc.min_max(column.filter(pc.is_finite(column)))
            ranges[field.name] = {
                "min": extremes["min"].as_py(),
                "max": extremes["max"].as_py(),
                "nan": pc.sum(pc.is_nan(column)).as_py() or 0,
            }
    return ranges


# ------------------------------------------------------------------------------------------------------ where it runs


def _in_process(todo: Iterator[Shard], build: BuildWorker) -> Iterator[Computed]:
    built: Worker | None = None
    for shard in todo:
        started = time.monotonic()
        built = built or build()
        yield Computed(shard, _apply(built, shard.ipc), time.monotonic() - started, 1, _lowered(built))


def _on_actors(
    todo: Iterator[Shard], build: BuildWorker, execution: Execution, context: StageContext, most: int, unit: str
) -> Iterator[Computed]:
    """Yield computed shards: one per actor in flight, one cut ahead of need, ``most`` in total at most."""
    queue = _ShardQueue(todo, build, unit)
    if not queue.has_ready():
        return
    size = max(1, min(execution.workers, most))
    failures = WorkerFailures(execution.max_failures, f"execution.{context.folder.stage}", context.log)
    finished = run_on_actors(queue, _ShardActor, (execution,), size=size, execution=execution, failures=failures, journal=context.journal)
    with closing(finished):  # an abandoned iterator ends the actors at once
        for one in finished:
            table, seconds, batch_tokens = one.answer
            yield Computed(one.item, _from_ipc(table), seconds, one.attempt, batch_tokens)
    failures.raise_set_aside()


class _ShardQueue:
    """The shards of a stream as a pool's work: one is cut ahead of need; shards of dead actors come first."""

    def __init__(self, todo: Iterator[Shard], build: BuildWorker, unit: str):
        self._todo, self._build, self._unit = todo, build, unit
        self._pending: deque[Shard] = deque()
        self._cut_ahead()

    def has_ready(self) -> bool:
        return bool(self._pending)

    def expects_more(self) -> bool:
        return False

    def take(self) -> Shard:
        shard = self._pending.popleft()
        self._cut_ahead()
        return shard

    def task(self, item: Shard) -> tuple[BuildWorker, bytes]:
        return self._build, item.ipc

    def describe(self, item: Shard) -> str:
        return f"{self._unit} {item.start} to {item.stop}"

    def give_back(self, item: Shard) -> None:
        self._pending.appendleft(item)

    def set_aside(self, item: Shard, failure: StageFailed) -> None:
        """Do nothing: the step fails at its end (:meth:`WorkerFailures.raise_set_aside`)."""

    def _cut_ahead(self) -> None:
        if not self._pending and (shard := next(self._todo, None)) is not None:
            self._pending.append(shard)


class _ShardActor:
    """Holds one worker. It is built at the first shard, so that its errors are task errors, which keep their type."""

    def __init__(self, execution: Execution):
        self._execution = execution
        self._worker: Worker | None = None

    def ready(self) -> None:
        return None

    def work(self, build: BuildWorker, ipc: bytes) -> tuple[bytes, float, int | None]:
        started = time.monotonic()
        if self._worker is None:
            use_threads(self._execution)
            self._worker = build()
        return _to_ipc(_apply(self._worker, ipc)), time.monotonic() - started, _lowered(self._worker)


def _apply(worker: Worker, ipc: bytes) -> pa.Table:
    rows = _from_ipc(ipc)
    table = worker(rows)
    assert table.num_rows == rows.num_rows, f"{type(worker).__name__} returned {table.num_rows} rows for {rows.num_rows}"
    return table


def _lowered(worker: Worker) -> int | None:
    return None if worker.budget is None else worker.budget.lowered


def _to_ipc(table: pa.Table) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return bytes(sink.getvalue())


def _from_ipc(data: bytes) -> pa.Table:
    import pyarrow as pa

    return pa.ipc.open_stream(data).read_all()
