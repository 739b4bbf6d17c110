"""Sharded inference: resume, checksums, the worker's own errors, and deaths of real actors."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from dora_core.config.execution import Execution
from dora_core.errors import DataError, ServiceError, StageFailed
from infra.store.journal import JournalReader, JournalWriter
from infra.store.store import Store
from tasks.runtime.shards import cut, float_ranges, run_shards, shard_sizes, stream_shards
from tasks.runtime.stage import StageContext
from tasks.runtime.workers import Worker

DIGEST = "0" * 64
ROWS = pa.table({"key": [f"row {i}" for i in range(25)], "value": pa.array([float(i) for i in range(25)])})
IN_PROCESS = Execution(workers=0, shard_rows=10)


class Doubler(Worker):
    """Doubles ``value``. Appends the rows it sees to ``calls``; dies or raises once or always at a given row."""

    def __init__(self, calls: str, die_at: str | None = None, always: bool = False, fail_at: str | None = None):
        self.calls, self.die_at, self.always, self.fail_at = Path(calls), die_at, always, fail_at

    def __call__(self, rows: pa.Table) -> pa.Table:
        keys = rows["key"].to_pylist()
        mark = self.calls.with_suffix(".died")
        if self.die_at in keys and (self.always or not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fail_at in keys:
            raise DataError("row is bad", hint="drop it")
        with self.calls.open("a") as file:
            file.write("".join(f"{k}\n" for k in keys))
        return pa.table({"key": rows["key"], "twice": pa.array([2 * v for v in rows["value"].to_pylist()])})


def context_of(store: Store) -> StageContext:
    folder = store.folder("calibrate", DIGEST)
    return StageContext(store, folder, JournalWriter(folder), logging.getLogger("test"))


@pytest.fixture
def context(tmp_path):
    return context_of(Store(str(tmp_path / "store")))


def double(context, tmp_path, execution=IN_PROCESS, rows=ROWS, **arguments):
    worker = partial(Doubler, str(tmp_path / "calls.txt"), **arguments)
    return run_shards(context, rows, name="double", worker=worker, execution=execution, unit="rows")


def calls(tmp_path) -> list[str]:
    return (tmp_path / "calls.txt").read_text().splitlines()


def expect_all_rows_once(table):
    assert table["key"].to_pylist() == ROWS["key"].to_pylist()
    assert table["twice"].to_pylist() == [2 * v for v in ROWS["value"].to_pylist()]


def test_shards_cover_every_row_once():
    assert [(s.start, s.stop) for s in cut([ROWS], shard_sizes(25, 10))] == [(0, 10), (10, 20), (20, 25)]
    assert [(s.start, s.stop) for s in cut([ROWS.slice(0, 0)], shard_sizes(0, 10))] == [(0, 0)]
    assert list(cut([], shard_sizes(0, 10))) == []
    assert [(s.start, s.stop) for s in cut([ROWS], iter([4, 15]))] == [(0, 4), (4, 19), (19, 25)]  # more rows than were announced


def test_shards_get_smaller_towards_the_end():
    """1,000 rows: 1000 // 16 = 62, then 938 // 16 = 58, …, and 32 from 527 left on (527 // 16 = 32). A large input begins full."""
    sizes = list(shard_sizes(1000, 2048))
    assert sizes[:3] == [62, 58, 55] and sizes[-2:] == [32, 32] and sum(sizes) - 32 < 1000 <= sum(sizes)
    assert sizes == sorted(sizes, reverse=True) and len(sizes) >= 2 * 10
    many = list(shard_sizes(10**6, 2048))
    assert many[:470] == [2048] * 470 and len(many) < 10**6 / 2048 + 100 and max(many[-20:]) < 70
    assert list(shard_sizes(0, 2048)) == [32] and list(shard_sizes(3, 2)) == [2, 2]


@pytest.mark.parametrize("batch", [1, 3, 7, 10, 24, 25])
def test_shards_are_the_same_bytes_however_the_stream_was_batched(batch):
    stream = [ROWS.slice(i, batch) for i in range(0, 25, batch)]
    assert list(cut(stream, shard_sizes(25, 10))) == list(cut([ROWS], shard_sizes(25, 10)))
    assert list(cut([*stream, ROWS.slice(0, 0)], shard_sizes(25, 5))) == list(cut([ROWS], shard_sizes(25, 5)))


def test_second_run_computes_nothing(context, tmp_path):
    expect_all_rows_once(double(context, tmp_path))
    expect_all_rows_once(double(context, tmp_path))
    assert calls(tmp_path) == ROWS["key"].to_pylist()
    context.journal.flush()
    progress = [e["done"] for e in JournalReader(context.store, "calibrate", DIGEST).new_events()]
    assert progress == [0, 10, 20, 25, 0, 10, 20, 25]


def test_a_stream_is_read_no_further_than_it_is_computed(context, tmp_path):
    """Memory does not grow with the rows: when a shard comes out, the input is read up to that shard and no further."""
    read = []

    def rows():
        for i in range(25):
            read.append(i)
            yield ROWS.slice(i, 1)

    worker = partial(Doubler, str(tmp_path / "calls.txt"))
    results = stream_shards(context, rows(), total=25, name="double", worker=worker, execution=IN_PROCESS, unit="rows")
    assert read == []
    assert [(table.num_rows, len(read)) for table in results] == [(10, 10), (10, 20), (5, 25)]


def test_an_empty_table_keeps_its_schema(context, tmp_path):
    assert double(context, tmp_path, rows=ROWS.slice(0, 0)).column_names == ["key", "twice"]


def test_marker_says_what_was_written(context, tmp_path):
    double(context, tmp_path)
    marker = json.loads((context.path / "scratch/double/000000000020-000000000025.json").read_text())
    assert marker["rows"] == 5 and marker["attempt"] == 1
    assert marker["columns"] == {"twice": {"min": 40.0, "max": 48.0, "nan": 0}}


@pytest.mark.fault(14, 15)
@pytest.mark.parametrize("damage", ["data changed", "data gone", "marker gone", "marker torn"])
def test_only_what_fails_verification_is_computed_again(context, tmp_path, damage):
    double(context, tmp_path)
    data = context.path / "scratch/double/000000000010-000000000020.parquet"
    if damage == "data changed":
        pq.write_table(pq.read_table(data).slice(0, 9), data)
    elif damage == "data gone":
        data.unlink()
    elif damage == "marker gone":
        data.with_suffix(".json").unlink()
    else:
        data.with_suffix(".json").write_text('{"rows": 1')
    (tmp_path / "calls.txt").unlink()
    expect_all_rows_once(double(context, tmp_path))
    assert calls(tmp_path) == [f"row {i}" for i in range(10, 20)]


def test_other_input_rows_are_not_taken_from_old_shards(context, tmp_path):
    double(context, tmp_path)
    changed = ROWS.set_column(1, "value", pa.array([float(i) + (i == 12) for i in range(25)]))
    assert double(context, tmp_path, rows=changed)["twice"].to_pylist()[12] == 26.0
    assert len(calls(tmp_path)) == 25 + 10


def test_worker_exception_is_raised_as_it_is_and_finished_shards_stay(context, tmp_path):
    with pytest.raises(DataError, match="row is bad"):
        double(context, tmp_path, fail_at="row 15")
    expect_all_rows_once(double(context, tmp_path))
    assert calls(tmp_path) == ROWS["key"].to_pylist()


def test_float_ranges_count_nan_apart():
    table = pa.table({"x": [1.0, float("nan"), -2.0, float("inf")], "y": [None, None, None, 0.5], "z": ["a"] * 4})
    assert float_ranges(table) == {"x": {"min": -2.0, "max": 1.0, "nan": 1}, "y": {"min": 0.5, "max": 0.5, "nan": 0}}


# ---------------------------------------------------------------------------------------------------------- real actors


def data_files(context) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (context.path / "scratch/double").glob("*.parquet")}


@pytest.mark.fault(21)
@pytest.mark.component
def test_number_of_workers_does_not_change_a_byte(ray_cluster, context, tmp_path):
    alone = context_of(Store(str(tmp_path / "other")))
    expect_all_rows_once(double(context, tmp_path, execution=Execution(workers=2, cpus_per_worker=0.5, shard_rows=3)))
    expect_all_rows_once(double(alone, tmp_path, execution=Execution(workers=0, shard_rows=3)))
    assert data_files(context) == data_files(alone) and len(data_files(context)) == 9


@pytest.mark.component
def test_actors_are_fed_from_a_stream_one_shard_ahead(ray_cluster, context, tmp_path):
    """At most one shard per actor and one in waiting are cut beyond what is finished; results come in the order of the rows."""
    read, ahead, keys = [], [], []

    def rows():
        for i in range(25):
            read.append(i)
            yield ROWS.slice(i, 1)

    execution = Execution(workers=2, cpus_per_worker=0.5, shard_rows=2)
    worker = partial(Doubler, str(tmp_path / "calls.txt"))
    for table in stream_shards(context, rows(), total=25, name="double", worker=worker, execution=execution, unit="rows"):
        keys += table["key"].to_pylist()
        finished = len(list((context.path / "scratch/double").glob("*.json")))
        ahead.append(-(-len(read) // 2) - finished)
    assert keys == ROWS["key"].to_pylist()
    assert max(ahead) <= 2 + 1


@pytest.mark.fault(1)
@pytest.mark.component
def test_killed_actor_loses_no_row_and_repeats_none(ray_cluster, context, tmp_path):
    execution = Execution(workers=2, cpus_per_worker=0.5, shard_rows=5, max_failures=1)
    expect_all_rows_once(double(context, tmp_path, execution=execution, die_at="row 12"))
    assert (tmp_path / "calls.died").exists()
    assert sorted(calls(tmp_path)) == sorted(ROWS["key"].to_pylist())
    attempts = {p.name[:12]: json.loads(p.read_text())["attempt"] for p in (context.path / "scratch/double").glob("*.json")}
    assert attempts == {"000000000000": 1, "000000000005": 1, "000000000010": 2, "000000000015": 1, "000000000020": 1}


class CutOff(Doubler):
    """Once, loses its connections to the process that uses it, and lives on."""

    def __init__(self, calls: str, asker: int):
        super().__init__(calls)
        self.asker = asker

    def __call__(self, rows: pa.Table) -> pa.Table:
        if not (mark := self.calls.with_suffix(".cut")).exists():
            theirs = {(c.laddr, c.raddr) for c in psutil.Process(self.asker).net_connections() if c.raddr}
            ours = [c.fd for c in psutil.Process().net_connections() if c.raddr and (c.raddr, c.laddr) in theirs]
            mark.write_text(str(len(ours)))
            for descriptor in ours:
                with socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM) as connection:
                    connection.shutdown(socket.SHUT_RDWR)
            time.sleep(3600)
        return super().__call__(rows)


@pytest.mark.fault(1, 29)
@pytest.mark.component
@pytest.mark.chaos
def test_a_worker_that_is_cut_off_gives_its_place_to_another(ray_cluster, context, tmp_path):
    """It is alive, and has all of the cluster's cores: the next one would wait for them forever."""
    worker = partial(CutOff, str(tmp_path / "calls.txt"), os.getpid())
    execution = Execution(workers=1, cpus_per_worker=2, shard_rows=10)
    table = run_shards(context, ROWS, name="double", worker=worker, execution=execution, unit="rows")
    expect_all_rows_once(table)
    assert int((tmp_path / "calls.cut").read_text()) > 0
    assert sorted(calls(tmp_path)) == sorted(ROWS["key"].to_pylist())


@pytest.mark.fault(2)
@pytest.mark.component
def test_a_shard_that_always_kills_its_worker_fails_alone(ray_cluster, context, tmp_path):
    execution = Execution(workers=1, cpus_per_worker=0.5, shard_rows=10, max_failures=1)
    with pytest.raises(StageFailed, match="the same rows killed every worker that took them: rows 10 to 20 2 times"):
        double(context, tmp_path, execution=execution, die_at="row 12", always=True)
    assert len(data_files(context)) == 2
    expect_all_rows_once(double(context, tmp_path))
    assert sorted(calls(tmp_path)) == sorted(ROWS["key"].to_pylist())


def where_memory_is_short(folder: str) -> None:
    """In a process whose Ray ends every worker, for its memory is said to be 1 % of the machine's."""
    import ray

    os.environ |= {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    context = context_of(Store(f"{folder}/store"))
    try:
        double(context, Path(folder), execution=Execution(workers=1, max_failures=1))
    except StageFailed as error:
        print(json.dumps(error.to_json()))
    ray.shutdown()


@pytest.mark.fault(2)
@pytest.mark.component
@pytest.mark.chaos
def test_workers_that_rays_memory_monitor_ends_are_deaths_with_their_cause(tmp_path, recovery):
    recovery.begins()
    code = f"import sys; from {__name__} import where_memory_is_short; where_memory_is_short(sys.argv[1])"
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300)
    error = json.loads(child.stdout.splitlines()[-1])
    # Whether one dies while it starts or both at the first rows, is up to the monitor.
    assert "the same rows killed every worker" in error["message"] or "2 workers died in different places" in error["message"]
    assert "running low on memory" in error["message"] and "batch_tokens of execution.calibrate" in error["hint"]


@pytest.mark.component
def test_exception_in_an_actor_keeps_its_type_and_hint_and_is_not_retried(ray_cluster, context, tmp_path):
    with pytest.raises(DataError, match="row is bad") as error:
        double(context, tmp_path, execution=Execution(workers=1, cpus_per_worker=0.5, shard_rows=25), fail_at="row 15")
    assert error.value.hint == "drop it"


@pytest.mark.component
def test_a_worker_bigger_than_any_node_is_refused(ray_cluster, context, tmp_path):
    with pytest.raises(ServiceError, match="needs 64 CPUs"):
        double(context, tmp_path, execution=Execution(workers=1, cpus_per_worker=64))


@pytest.mark.component
def test_actors_are_gone_afterwards(ray_cluster, context, tmp_path):
    import ray

    double(context, tmp_path, execution=Execution(workers=2, cpus_per_worker=1, shard_rows=5))
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 2.0 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2.0


@pytest.mark.fault(27)
def test_shards_that_a_remote_store_does_not_list_yet_are_not_computed_again(tmp_path, monkeypatch):
    """Another machine goes on, whose cache is empty, with a listing from before the first shard."""
    (tmp_path / "bucket" / "prefix").mkdir(parents=True)
    bucket = pafs.SubTreeFileSystem(str(tmp_path / "bucket"), pafs.LocalFileSystem())

    def on_machine(name: str) -> StageContext:
        store = Store(str(tmp_path / name))
        store.remote = (bucket, "prefix")
        monkeypatch.setattr(store, "list", lambda relative: [])
        return context_of(store)

    for name in ("one", "two"):
        expect_all_rows_once(double(on_machine(name), tmp_path))
    assert calls(tmp_path) == ROWS["key"].to_pylist()
