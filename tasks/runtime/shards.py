"""Sharded inference over a stream of rows: deterministic shards, a pool of Ray actors, resume.

Rows are cut into shards by position (``execution.shard_rows``), however the stream was batched. A shard's output depends on its rows
and the worker's arguments alone, so the number of workers, their deaths and restarts never change a byte of the result. (Where the
accelerator ran out of memory, results are the same up to rounding, and the stage says so.)

Memory does not grow with the rows: a shard is cut when an actor is free for it (one more waits), and results are read back from
disk one by one, in the order of the rows.

Each finished shard is two files in ``scratch/<name>/``: ``<first>-<last>.parquet``, written to a temporary name, fsynced,
renamed; then its marker ``….json`` (rows, sha256 of the data, sha256 of the input rows, min/max/NaN count per float column,
attempt, seconds, tokens per batch where memory lowered them). A shard is done when its marker agrees with both its data and its input;
anything else is computed again.
The folder survives a crash, on a remote store too (each file is committed as soon as it is final), and is bookkeeping:
never listed in ``result.json``, free to delete once that exists.

Failure policy: a *death* of an actor (kill −9, out of memory, lost node) costs the shard it held, which goes to a replacement; a shard
that kills one worker after another is set aside, and the step fails for it when the others are finished
(``tasks/runtime/worker_failures.py``). An
*exception* of the worker is a fault of code or data and is raised as it is. Finished shards are kept in any case.

Left out: work stealing and several shards in flight per actor. Shards are minutes, a round trip is milliseconds.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dora_core.config.execution import Execution
from infra.store.store import replacing, sha256_file
from tasks.runtime.cluster import check_fits, ray_session
from tasks.runtime.stage import StageContext
from tasks.runtime.worker_failures import Deaths
from tasks.tables.rows import rebatch

if TYPE_CHECKING:
    import pyarrow as pa

Worker = Callable[["pa.Table"], "pa.Table"]


@dataclass(frozen=True)
class Shard:
    """Rows [start, stop) of the input, as an Arrow IPC stream: what an actor receives and what the marker's checksum covers."""

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
    """One shard's output.

    Attributes:
        attempt: counts from 1 within this run of the stage.
        batch_tokens: what the worker's budget was lowered to, None where all batches fitted into memory.
    """

    shard: Shard
    table: pa.Table
    seconds: float
    attempt: int
    batch_tokens: int | None


def run_shards(
    context: StageContext, rows: pa.Table, *, name: str, worker: type, arguments: dict[str, Any], execution: Execution, unit: str
) -> pa.Table:
    """:func:`stream_shards` for a table that fits in memory, with a result that does too."""
    import pyarrow as pa

    results = stream_shards(
        context, [rows], total=rows.num_rows, name=name, worker=worker, arguments=arguments, execution=execution, unit=unit
    )
    return pa.concat_tables(results)


def stream_shards(
    context: StageContext,
    rows: Iterable[pa.Table],
    *,
    total: int,
    name: str,
    worker: type,
    arguments: dict[str, Any],
    execution: Execution,
    unit: str,
) -> Iterator[pa.Table]:
    """Map ``worker(**arguments)`` over ``rows``, shard by shard; yields one table per shard, rows in the order of input rows.

    Args:
        rows: the input as tables of one schema and any size, read while shards are computed; every column goes to the worker.
        total: number of input rows, for the progress bar.
        name: folder of the shards, unique within the stage.
        worker: an importable class; built once per actor (that is where a model is loaded), then called with tables.
            Must return as many rows as it got and depend on nothing but its arguments and those rows. If it has a ``budget``
            (``dora_core.models.batching.TokenBudget``), what that was lowered to becomes a warning of the stage.
        execution: ``workers`` actors at most, each with ``cpus_per_worker`` and ``gpus_per_worker``; 0 = in this process.
        unit: what a row is called in the progress bar.

    Raises:
        StageFailed: too many actors died.
        ServiceError: no node of the cluster is big enough for a worker.
    """
    ledger, finished, reused = ShardLedger(context, name), 0, 0
    waiting: deque[Shard] = deque()  # cut and not yielded, without their rows
    done: set[int] = set()  # starts of those that are on disk

    def incomplete() -> Iterator[Shard]:
        nonlocal finished, reused
        for shard in cut(rows, execution.shard_rows):
            waiting.append(Shard(shard.start, shard.stop, b""))
            if not ledger.is_done(shard):
                yield shard
                continue
            done.add(shard.start)
            finished, reused = finished + shard.stop - shard.start, reused + shard.stop - shard.start
            context.progress(finished, total, unit, name)

    def ready() -> Iterator[pa.Table]:
        while waiting and waiting[0].start in done:
            shard = waiting.popleft()
            done.remove(shard.start)
            yield ledger.read(shard)

    context.progress(0, total, unit, name)
    compute = _in_process if execution.workers == 0 else _on_actors
    for computed in compute(incomplete(), worker, arguments, execution, context, -(-total // execution.shard_rows), unit):
        ledger.mark_done(computed)
        done.add(computed.shard.start)
        finished += computed.table.num_rows
        context.progress(finished, total, unit, name)
        yield from ready()
    yield from ready()
    if ledger.batch_tokens is not None:
        context.warn(
            f"{name}: the accelerator's memory did not hold {execution.batch_tokens} tokens, so batches were cut to {ledger.batch_tokens}: "
            f"set batch_tokens of execution.{context.folder.stage} to that"
        )
    if reused:
        context.log.info("%s: %d of %d %s were there from an earlier attempt", name, reused, total, unit)


def cut(tables: Iterable[pa.Table], shard_rows: int) -> Iterator[Shard]:
    """Consecutive shards of ``shard_rows`` rows; the last may be smaller. An empty table is one empty shard (it has a schema)."""
    import numpy as np

    start = 0
    for rows in rebatch(tables, shard_rows):
        copied = rows.combine_chunks().take(np.arange(rows.num_rows))  # a slice shares buffers, which would show in the bytes
        yield Shard(start, start + rows.num_rows, _to_ipc(copied))
        start += rows.num_rows


class ShardLedger:
    """Which shards of one sharded step are finished, by checksums; see the module docstring.

    Attributes:
        batch_tokens: the fewest of any shard asked for or marked; None where memory lowered none.
    """

    def __init__(self, context: StageContext, name: str):
        self._context, self._folder = context, f"scratch/{name}"
        (context.path / self._folder).mkdir(parents=True, exist_ok=True)
        self.batch_tokens: int | None = None

    def is_done(self, shard: Shard) -> bool:
        """The marker is there, belongs to these input rows, and the data has its checksum."""
        store, prefix = self._context.store, f"{self._context.folder.stage}/{self._context.folder.digest}"
        marker = store.read_json(f"{prefix}/{self._marker(shard)}")
        if not isinstance(marker, dict) or marker.get("input_sha256") != shard.sha256:
            return False
        data = self._context.path / self._data(shard)
        if not data.exists() and self._data(shard).rsplit("/", 1)[1] in store.list(f"{prefix}/{self._folder}"):
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


def _in_process(
    todo: Iterator[Shard], worker: type, arguments: dict[str, Any], execution: Execution, _context: StageContext, _most: int, _unit: str
) -> Iterator[Computed]:
    built: Worker | None = None
    for shard in todo:
        started = time.monotonic()
        built = built or worker(**arguments)
        yield Computed(shard, _apply(built, shard.ipc), time.monotonic() - started, 1, _lowered(built))


def _on_actors(
    todo: Iterator[Shard], worker: type, arguments: dict[str, Any], execution: Execution, context: StageContext, most: int, unit: str
) -> Iterator[Computed]:
    """One shard per actor in flight, and one cut ahead of need; there are ``most`` shards at most. A shard is only handed to an actor that
    has started, so that two stages which share a cluster never wait for each other's places."""
    first = [shard for shard in [next(todo, None)] if shard is not None]
    if not first:
        return
    import ray
    from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

    with ray_session():
        check_fits(execution)
        actor_class = ray.remote(_Actor).options(num_cpus=execution.cpus_per_worker, num_gpus=execution.gpus_per_worker, max_restarts=0)
        recipe = ray.put((worker, arguments))
        pending, attempts, deaths = deque(first), dict[int, int](), Deaths(execution.max_failures, context.folder.stage, context.log)
        actors: list[Any] = []  # every actor ever started: a traceback would keep a forgotten one, and its place, alive
        running: dict[Any, tuple[Any, Shard | None]] = {}  # a shard of None: the actor is starting

        def cut_ahead() -> None:
            if not pending and (shard := next(todo, None)) is not None:
                pending.append(shard)

        def start_actor() -> None:
            actor = actor_class.remote(max(1, int(execution.cpus_per_worker)))
            actors.append(actor)
            running[actor.ready.remote()] = (actor, None)

        try:
            for _ in range(max(1, min(execution.workers, most))):
                start_actor()
            while pending or any(shard for _, shard in running.values()):
                (reference, *_), _ = ray.wait(list(running), num_returns=1)
                actor, shard = running.pop(reference)
                try:
                    answer = ray.get(reference)
                except (RayActorError, OutOfMemoryError) as error:  # the latter where Ray's own memory monitor killed it
                    if deaths.count(shard and f"{unit} {shard.start} to {shard.stop}", error) and shard is not None:
                        pending.appendleft(shard)
                    ray.kill(actor)  # one that only the network has lost lives on, and holds the place of the next
                    start_actor()
                    continue
                except RayTaskError as error:
                    raise error.cause from error  # the worker's own exception, not Ray's wrapping
                if pending:
                    following = pending.popleft()
                    attempts[following.start] = attempts.get(following.start, 0) + 1
                    running[actor.compute.remote(recipe, following.ipc)] = (actor, following)
                    cut_ahead()
                else:
                    ray.kill(actor)  # gives its place to other stages while the last shards run
                if shard is not None:
                    table, seconds, batch_tokens = answer
                    yield Computed(shard, _from_ipc(table), seconds, attempts.pop(shard.start), batch_tokens)
            deaths.raise_those_set_aside()
        finally:
            for actor in actors:
                ray.kill(actor)


class _Actor:
    """Holds one worker. It is built at the first shard, so that its errors are task errors with a type of their own."""

    def __init__(self, threads: int):
        self._threads = threads
        self._worker: Worker | None = None

    def ready(self) -> None:
        return None

    def compute(self, recipe: tuple[type, dict[str, Any]], ipc: bytes) -> tuple[bytes, float, int | None]:
        started = time.monotonic()
        if self._worker is None:
            import torch

            torch.set_num_threads(self._threads)
            os.environ["RAYON_NUM_THREADS"] = str(self._threads)  # the tokenizers' pool, made at their first use; else one per core
            worker, arguments = recipe
            self._worker = worker(**arguments)
        return _to_ipc(_apply(self._worker, ipc)), time.monotonic() - started, _lowered(self._worker)


def _apply(worker: Worker, ipc: bytes) -> pa.Table:
    rows = _from_ipc(ipc)
    table = worker(rows)
    assert table.num_rows == rows.num_rows, f"{type(worker).__name__} returned {table.num_rows} rows for {rows.num_rows}"
    return table


def _lowered(worker: Worker) -> int | None:
    budget = getattr(worker, "budget", None)
    return None if budget is None else budget.lowered


def _to_ipc(table: pa.Table) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


def _from_ipc(data: bytes) -> pa.Table:
    import pyarrow as pa

    return pa.ipc.open_stream(data).read_all()
