"""Sharded inference over a table: deterministic shards, a pool of Ray actors, resume.

Rows are cut into shards by position (``execution.shard_rows``). A shard's output depends on its rows and the worker's
arguments alone, so the number of workers, their deaths and restarts never change a byte of the result.

Each finished shard is two files in ``scratch/<name>/``: ``<first>-<last>.parquet``, written to a temporary name, fsynced,
renamed; then its marker ``….json`` (rows, sha256 of the data, sha256 of the input rows, min/max/NaN count per float column,
attempt, seconds). A shard is done when its marker agrees with both its data and its input; anything else is computed again.
The folder survives a crash, on a remote store too (each file is committed as soon as it is final), and is bookkeeping:
never listed in ``result.json``, free to delete once that exists.

Failure policy: a *death* of an actor (kill −9, out of memory, lost node) costs the shard it held, which goes to a replacement,
up to ``execution.max_failures`` deaths; an *exception* of the worker is a fault of code or data and is raised as it is.

Left out: work stealing and several shards in flight per actor. Shards are minutes, a round trip is milliseconds.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dora_core.config import Execution
from dora_core.errors import StageFailed
from infra.store import sha256_file
from tasks.cluster import check_fits, ray_session
from tasks.stage import StageContext

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
    """One shard's output. ``attempt`` counts from 1 within this run of the stage."""

    shard: Shard
    table: pa.Table
    seconds: float
    attempt: int


def run_shards(
    context: StageContext,
    rows: pa.Table,
    *,
    name: str,
    worker: type,
    arguments: dict[str, Any],
    execution: Execution,
    unit: str,
) -> pa.Table:
    """Map ``worker(**arguments)`` over ``rows``, shard by shard; output rows are in the order of input rows.

    Args:
        rows: the input; every column goes to the worker.
        name: folder of the shards, unique within the stage.
        worker: an importable class; built once per actor (that is where a model is loaded), then called with tables.
            Must return as many rows as it got and depend on nothing but its arguments and those rows.
        execution: ``workers`` actors at most, each with ``cpus_per_worker`` and ``gpus_per_worker``; 0 = in this process.
        unit: what a row is called in the progress bar.

    Raises:
        StageFailed: more than ``execution.max_failures`` actors died.
        ServiceError: no node of the cluster is big enough for a worker.
    """
    import pyarrow as pa

    ledger = ShardLedger(context, name)
    shards = cut(rows, execution.shard_rows)
    todo = ledger.incomplete(shards)
    done = rows.num_rows - sum(s.stop - s.start for s in todo)
    if done:
        context.log.info("%s: %d of %d %s are there from an earlier attempt", name, done, rows.num_rows, unit)
    context.progress(done, rows.num_rows, unit, name)
    compute = _in_process if execution.workers == 0 else _on_actors
    for computed in compute(todo, worker, arguments, execution, context):
        ledger.mark_done(computed)
        done += computed.table.num_rows
        context.progress(done, rows.num_rows, unit, name)
    return pa.concat_tables([ledger.read(s) for s in shards])


def cut(rows: pa.Table, shard_rows: int) -> list[Shard]:
    """Consecutive shards of ``shard_rows`` rows; the last may be smaller. An empty table is one empty shard (it has a schema)."""
    starts = range(0, max(rows.num_rows, 1), shard_rows)
    return [Shard(i, min(i + shard_rows, rows.num_rows), _to_ipc(rows.slice(i, shard_rows))) for i in starts]


class ShardLedger:
    """Which shards of one sharded step are finished, by checksums; see the module docstring."""

    def __init__(self, context: StageContext, name: str):
        self._context, self._folder = context, f"scratch/{name}"
        (context.path / self._folder).mkdir(parents=True, exist_ok=True)

    def is_done(self, shard: Shard) -> bool:
        """The marker is there, belongs to these input rows, and the data has its checksum."""
        store, prefix = self._context.store, f"{self._context.folder.stage}/{self._context.folder.digest}"
        marker = store.read_json(f"{prefix}/{self._marker(shard)}")
        if marker is None or marker["input_sha256"] != shard.sha256:
            return False
        data = self._context.path / self._data(shard)
        if not data.exists() and self._data(shard).rsplit("/", 1)[1] in store.list(f"{prefix}/{self._folder}"):
            store.download(f"{prefix}/{self._data(shard)}")
        return data.exists() and sha256_file(data) == marker["sha256"]

    def mark_done(self, computed: Computed) -> None:
        """Write the data, then the marker; both durable, both atomic."""
        import pyarrow.parquet as pq

        data = self._context.path / self._data(computed.shard)
        temporary = data.with_name(f".{data.name}.tmp")
        with temporary.open("wb") as file:
            pq.write_table(computed.table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, data)
        self._context.folder.commit(self._data(computed.shard))
        marker = {
            "rows": computed.table.num_rows,
            "sha256": sha256_file(data),
            "input_sha256": computed.shard.sha256,
            "columns": float_ranges(computed.table),
            "attempt": computed.attempt,
            "seconds": round(computed.seconds, 3),
        }
        self._context.folder.write_json(self._marker(computed.shard), marker)

    def incomplete(self, shards: Sequence[Shard]) -> list[Shard]:
        return [s for s in shards if not self.is_done(s)]

    def read(self, shard: Shard) -> pa.Table:
        import pyarrow.parquet as pq

        return pq.read_table(self._context.path / self._data(shard))

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
    todo: Sequence[Shard], worker: type, arguments: dict[str, Any], execution: Execution, _: StageContext
) -> Iterator[Computed]:
    if not todo:
        return
    built = worker(**arguments)
    for shard in todo:
        started = time.monotonic()
        yield Computed(shard, _apply(built, shard.ipc), time.monotonic() - started, 1)


def _on_actors(
    todo: Sequence[Shard], worker: type, arguments: dict[str, Any], execution: Execution, context: StageContext
) -> Iterator[Computed]:
    """One shard per actor in flight. A shard is only handed to an actor that has started, so that two stages which share a
    cluster never wait for each other's places."""
    if not todo:
        return
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    with ray_session():
        check_fits(execution)
        actor_class = ray.remote(_Actor).options(num_cpus=execution.cpus_per_worker, num_gpus=execution.gpus_per_worker, max_restarts=0)
        recipe = ray.put((worker, arguments))
        pending, attempts, deaths = deque(todo), dict.fromkeys((s.name for s in todo), 0), 0
        actors: list[Any] = []  # every actor ever started: a traceback would keep a forgotten one, and its place, alive
        running: dict[Any, tuple[Any, Shard | None]] = {}  # a shard of None: the actor is starting

        def start_actor() -> None:
            actor = actor_class.remote(max(1, int(execution.cpus_per_worker)))
            actors.append(actor)
            running[actor.ready.remote()] = (actor, None)

        try:
            for _ in range(min(execution.workers, len(todo))):
                start_actor()
            while pending or any(shard for _, shard in running.values()):
                (reference, *_), _ = ray.wait(list(running), num_returns=1)
                actor, shard = running.pop(reference)
                try:
                    answer = ray.get(reference)
                except RayActorError as error:
                    deaths += 1
                    if deaths > execution.max_failures:
                        raise _too_many_deaths(deaths, shard, error) from error
                    context.log.warning("a worker died (%d of at most %d); its shard starts again", deaths, execution.max_failures)
                    if shard is not None:
                        pending.appendleft(shard)
                    start_actor()
                    continue
                except RayTaskError as error:
                    raise error.cause from error  # the worker's own exception, not Ray's wrapping
                if pending:
                    following = pending.popleft()
                    attempts[following.name] += 1
                    running[actor.compute.remote(recipe, following.ipc)] = (actor, following)
                else:
                    ray.kill(actor)  # gives its place to other stages while the last shards run
                if shard is not None:
                    table, seconds = answer
                    yield Computed(shard, _from_ipc(table), seconds, attempts[shard.name])
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

    def compute(self, recipe: tuple[type, dict[str, Any]], ipc: bytes) -> tuple[bytes, float]:
        started = time.monotonic()
        if self._worker is None:
            import torch

            torch.set_num_threads(self._threads)
            worker, arguments = recipe
            self._worker = worker(**arguments)
        return _to_ipc(_apply(self._worker, ipc)), time.monotonic() - started


def _apply(worker: Worker, ipc: bytes) -> pa.Table:
    rows = _from_ipc(ipc)
    table = worker(rows)
    assert table.num_rows == rows.num_rows, f"{type(worker).__name__} returned {table.num_rows} rows for {rows.num_rows}"
    return table


def _too_many_deaths(deaths: int, shard: Shard | None, error: BaseException) -> StageFailed:
    place = "while starting" if shard is None else f"in rows {shard.start} to {shard.stop}"
    return StageFailed(
        f"{deaths} workers died, the last one {place}: {str(error).strip().splitlines()[0]}",
        hint="usually out of memory: lower execution.batch_tokens or workers; finished shards are kept, so run the same command again. "
        "execution.max_failures is the number of deaths survived",
    )


def _to_ipc(table: pa.Table) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


def _from_ipc(data: bytes) -> pa.Table:
    import pyarrow as pa

    return pa.ipc.open_stream(data).read_all()
