"""Load on one machine: queued flow runs, small shards, metrics. A lost or doubled record ends it with exit code 1.

flows: a Prefect server, a worker, MLflow and a Ray head of `dora up` in a separate home; flow runs are created as fast as the server
accepts them, most of them of the light flow `reap`, the others realignments of one project, of which the first computes and the others
find everything cached. Every one must end, completed. Meanwhile a schedule is edited every few seconds as Prefect's page does, each time
in one request that must not be refused. The memory of server and worker (PSS) and the number of runs with a process are sampled every two
seconds. `--batches 3` does it three times on the same servers; `--postgres` on Debian's PostgreSQL (`apt install postgresql`).
shards: small shards through `tasks/runtime/shards.py:stream_shards` with two actors; every row exactly once and in order, peak memory.
metrics: through `infra/tracking/tracker.py:Tracker` into the MLflow server; every point once, cost of a call for its caller, memory.

    python -m tests.benchmarks.bench_load [--only flows shards metrics] [--runs 200] [--shards 500] [--metrics 50000] [--save FILE]
    python -m tests.benchmarks.bench_load --only flows [--runs 200] [--batches 3] [--postgres] [--save FILE]
"""

from __future__ import annotations

import itertools
import logging
import math
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import requests
from prefect.client.schemas.objects import TERMINAL_STATES

from dora_core.config.execution import Execution
from flows.deployment.deploy import UPKEEP_AT_A_TIME
from infra.services import runs_at_a_time
from infra.settings import Settings
from infra.store.journal import JournalReader, JournalWriter
from infra.store.store import Store
from infra.tracking.mlflow_client import mlflow_client
from infra.tracking.tracker import Tracker
from tasks.runtime.shards import stream_shards
from tasks.runtime.stage import StageContext
from tasks.runtime.workers import Worker
from tests import postgres_server
from tests.benchmarks.harness import Row, argument_parser, report
from tests.machine import Machine, small_run

REALIGNMENTS = 20
"""One run in this many is a realignment, the others are of the flow `reap`."""
SHARD_ROWS, COLUMNS, EVENTS = 64, 10, 50
EDIT_SECONDS = 3.0
LOCKED = "database is locked"
"""In Prefect's log where a request met SQLite's other writers for too long."""
PATIENCE = 3600.0
MB = 1e6


@contextmanager
def repeated(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Call ``action`` every so many seconds in a thread, while the block runs."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            action()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@dataclass
class Memory:
    """PSS of processes by name, every two seconds while the block runs."""

    who: Callable[[], dict[str, list[psutil.Process]]]
    series: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def watched(self) -> Iterator[Memory]:
        self.look()
        try:
            with repeated(2.0, self.look):
                yield self
        finally:
            self.look()

    def look(self) -> None:
        for name, processes in self.who().items():
            total = 0
            for process in processes:
                with suppress(psutil.Error):
                    total += process.memory_full_info().pss
            self.series.setdefault(name, []).append(total / MB)
            self.counts[name] = max(self.counts.get(name, 0), len(processes))

    def shown(self, name: str) -> str:
        """``"210 → 225 → 231 → 230 MB, 240 at most"``, at each third of the time: shows whether it grows or levels off."""
        values = self.series[name]
        thirds = " → ".join(f"{values[round(part * (len(values) - 1) / 3)]:.0f}" for part in range(4))
        return f"{thirds} MB, {max(values):.0f} at most"


# ------------------------------------------------------------------------------------------------------------ flow runs


def insist(machine: Machine, path: str, body: dict[str, Any]) -> Any:
    """Repeat a request to the Prefect server until it answers: its delay under load is not measured."""
    while True:
        with suppress(requests.Timeout):
            return machine.prefect("POST", path, body)


@dataclass
class Edits:
    """Edits of a deployment's schedule, one every :data:`EDIT_SECONDS` while the block runs; a refused one is counted, not repeated."""

    api: str
    deployment: str
    answers: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    @contextmanager
    def running(self) -> Iterator[Edits]:
        [schedule] = requests.get(f"{self.api}/deployments/{self.deployment}/schedules", timeout=60).json()
        url = f"{self.api}/deployments/{self.deployment}/schedules/{schedule['id']}"

        numbers = itertools.count(1)

        def edit() -> None:
            hour = (time.gmtime().tm_hour + 12) % 24  # runs are scheduled, and none is due
            cron = {"cron": f"{next(numbers) % 60} {hour} * * *", "timezone": "UTC"}
            began = time.monotonic()
            try:
                answer = str(requests.patch(url, json={"active": True, "schedule": cron}, timeout=300).status_code)
            except requests.RequestException as error:
                answer = type(error).__name__
            self.answers[answer] += 1
            self.slowest = max(self.slowest, time.monotonic() - began)

        with repeated(EDIT_SECONDS, edit):
            yield self

    @property
    def refused(self) -> int:
        return sum(count for answer, count in self.answers.items() if not answer.startswith("2"))


def flow_runs(machine: Machine, count: int, batch: int) -> tuple[list[Row], int]:
    realign, reap = (machine.prefect("GET", f"/deployments/name/{name}")["id"] for name in ("realign/realign", "reap/reap"))
    parameters = small_run(machine, "load", on_ray_train=["sft", "align"], epochs=1)
    services = Settings(home=machine.home).services().services

    def who() -> dict[str, list[psutil.Process]]:
        found: dict[str, list[psutil.Process]] = {}
        with suppress(psutil.Error):
            worker = services["worker"].process._find()
            runs = worker.children() if worker else []
            found = {"flow runs": runs, "worker": [worker] if worker else []}
        for name in ("prefect", "mlflow"):
            with suppress(psutil.Error):
                process = services[name].process._find()
                found[name] = [process, *process.children(recursive=True)] if process else []
        return found

    edited = machine.prefect("GET", "/deployments/name/realign/realign-nightly")["id"]
    log = Settings(home=machine.home).log_folder / "prefect.log"
    locked_before = log.read_text(encoding="utf-8").count(LOCKED)
    began = time.monotonic()
    with Edits(f"{machine.urls['prefect']}/api", edited).running() as edits, Memory(who).watched() as memory:
        created = []
        for number in range(count):
            deployment, given = (realign, parameters) if number % REALIGNMENTS == 0 else (reap, {})
            name = f"load {batch}.{number}"
            body = {"parameters": given, "name": name, "idempotency_key": name, "work_queue_name": "default"}
            created.append(insist(machine, f"/deployments/{deployment}/create_flow_run", body)["id"])
        queued = time.monotonic() - began
        states: dict[str, Any] = {}
        while len(states) < count and time.monotonic() - began < PATIENCE:
            time.sleep(2.0)
            left = [run for run in created if run not in states][:200]
            where = {"id": {"any_": left}, "state": {"type": {"any_": [state.name for state in TERMINAL_STATES]}}}
            states |= {run["id"]: run["state"] for run in insist(machine, "/flow_runs/filter", {"flow_runs": where, "limit": 200})}
        seconds = time.monotonic() - began
    outcomes = Counter(state["type"] for state in states.values())
    bad = [f"{state['type']}: {state['message']}" for state in states.values() if state["type"] != "COMPLETED"]
    print("\n".join(sorted(set(bad))))
    limit = machine.prefect("GET", "/v2/concurrency_limits/dora-gpus")
    lost = count - outcomes["COMPLETED"]
    locked = log.read_text(encoding="utf-8").count(LOCKED) - locked_before
    realigned = len(range(0, count, REALIGNMENTS))
    places = runs_at_a_time() + UPKEEP_AT_A_TIME  # the scheduled `reap` runs beside them
    return [
        Row(
            f"batch {batch}: {count} flow runs queued, {realigned} of them realignments",
            f"{seconds:.0f} s, {60 * count / seconds:.0f} a minute",
            limit=f"queued in {queued:.0f} s",
        ),
        Row(
            "runs that did not complete, or are not known",
            str(lost),
            "0",
            lost == 0,
            ", ".join(f"{n} {name.lower()}" for name, n in outcomes.items()),
        ),
        Row(
            "edits of a schedule that were refused",
            f"{edits.refused} of {sum(edits.answers.values())}",
            "0",
            edits.refused == 0,
            f"answers {dict(edits.answers)}, the slowest after {edits.slowest:.1f} s; {locked} times locked in Prefect's log",
        ),
        Row(
            "most processes of runs at a time",
            str(memory.counts["flow runs"]),
            f"≤ {places}",
            memory.counts["flow runs"] <= places,
            f"together {max(memory.series['flow runs']):.0f} MB PSS at most; slots of dora-gpus still taken: {limit['active_slots']}",
        ),
        *(Row(f"memory: {name}", memory.shown(name), limit="PSS") for name in ("prefect", "worker", "mlflow")),
    ], lost + limit["active_slots"] + edits.refused


# --------------------------------------------------------------------------------------------------------------- shards


class Square(Worker):
    """A worker whose work takes no time."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        return pa.table({"key": rows["key"], "square": pa.array([value * value for value in rows["key"].to_pylist()])})


def shards(count: int) -> tuple[list[Row], int]:
    import ray

    rows = count * SHARD_ROWS
    arguments: dict[str, Any] = {"name": "square", "worker": Square, "unit": "rows"}
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)
            stage = store.folder("load", "0" * 64)
            context = StageContext(store, stage, JournalWriter(stage), logging.getLogger("load"))
            execution = Execution(workers=2, shard_rows=SHARD_ROWS)
            own = psutil.Process()
            began, keys, squares, wrong = time.monotonic(), 0, 0, 0
            with Memory(lambda: {"driver": [own], "all": [own, *own.children(recursive=True)]}).watched() as memory:
                tables = ({"key": pa.array(range(start, min(start + 1000, rows)))} for start in range(0, rows, 1000))
                for table in stream_shards(context, map(pa.table, tables), total=rows, execution=execution, **arguments):
                    expected = range(keys, keys + table.num_rows)
                    wrong += table["key"].to_pylist() != list(expected)
                    keys, squares = keys + table.num_rows, squares + sum(table["square"].to_pylist())
            seconds = time.monotonic() - began
            files = len([path for path in (stage.path / "scratch").rglob("*") if path.is_file()])
    finally:
        ray.shutdown()
    lost = abs(rows - keys) + wrong + (squares != sum(key * key for key in range(rows)))
    return [
        Row(
            f"{count} shards of {SHARD_ROWS} rows, 2 actors",
            f"{seconds:.1f} s, {1000 * seconds / count:.0f} ms a shard",
            limit=f"{files} files, each synced to disk",
        ),
        Row("rows lost, doubled or out of order", str(lost), "0", lost == 0, f"{keys:,} of {rows:,} rows came"),
        Row(
            "memory of the driver",
            memory.shown("driver"),
            limit=f"Ray and actors besides: {max(memory.series['all']) - max(memory.series['driver']):.0f} MB PSS at most",
        ),
    ], lost


# -------------------------------------------------------------------------------------------------------------- metrics


def metrics(uri: str, count: int, server: Callable[[], dict[str, list[psutil.Process]]]) -> tuple[list[Row], int]:
    """Send half of them one step a call, half as parts of a journal, :data:`EVENTS` events each."""
    names = [f"figure_{number}" for number in range(COLUMNS)]
    steps = count // COLUMNS
    seconds: dict[str, list[float]] = {"log_metrics": [], "replay": []}

    def timed(call: str, *arguments: Any) -> None:
        began = time.perf_counter()
        getattr(tracker, call)(*arguments)
        seconds[call].append(time.perf_counter() - began)

    own = psutil.Process()
    with tempfile.TemporaryDirectory() as folder, Memory(lambda: {"caller": [own]} | server()).watched() as memory:
        tracker = Tracker.open(uri, "load-metrics", Path(folder) / "outbox")
        store = Store(str(Path(folder) / "store"))
        writer, journal = JournalWriter(store.folder("align", "a" * 64), flush_seconds=math.inf), JournalReader(store, "align", "a" * 64)
        run, began = tracker.start_run("50,000 metrics"), time.monotonic()
        for step in range(steps // 2):
            timed("log_metrics", run, {name: float(step) for name in names}, step)
        for first in range(steps // 2, steps, EVENTS):
            for step in range(first, min(first + EVENTS, steps)):
                writer.metrics(step, {name: float(step) for name in names})
            writer.flush()
            [part] = journal.new_parts()
            timed("replay", run, part)
        called = time.monotonic() - began
        mlflow_id = tracker.mlflow_id(run, wait_seconds=60.0)
        tracker.finish(run, "FINISHED")
        warnings = tracker.close(patience_seconds=60.0, limit_seconds=PATIENCE)
        sent = time.monotonic() - began
        left = [path.name for path in (Path(folder) / "outbox").iterdir()]
    client = mlflow_client(uri)
    assert mlflow_id is not None, "\n".join(warnings)
    arrived = {name: Counter((point.step, point.value) for point in client.get_metric_history(mlflow_id, name)) for name in names}
    wanted = {(step, float(step)) for step in range(steps)}
    lost = sum(len(wanted - points.keys()) for points in arrived.values())
    doubled = sum(sum(points.values()) - len(wanted & points.keys()) for points in arrived.values())
    print("\n".join(warnings))

    def cost(call: str) -> str:
        each = sorted(seconds[call])
        return f"{1e6 * each[len(each) // 2]:.0f} µs (99 %: {1e6 * each[int(0.99 * len(each))]:.0f})"

    return [
        Row(
            f"{steps * COLUMNS:,} metrics, {len(names)} curves",
            f"{sent:.1f} s until all are there",
            limit=f"the caller was done after {called:.1f} s",
        ),
        Row(
            "points lost, doubled or refused",
            f"{lost}, {doubled}, {len(warnings)}",
            "0",
            not lost + doubled + len(warnings),
            f"left in the outbox: {left or 'nothing'}",
        ),
        Row(
            f"a call of log_metrics, {COLUMNS} figures",
            cost("log_metrics"),
            "< 1 ms",
            sorted(seconds["log_metrics"])[steps // 4] < 1e-3,
            "the caller's time, median",
        ),
        Row(f"a call of replay, {EVENTS} steps of {COLUMNS} figures", cost("replay"), limit="the caller's time, median"),
        *(Row(f"memory: {name}", memory.shown(name), limit="PSS") for name in memory.series),
    ], lost + doubled + len(warnings)


@contextmanager
def database(wanted: bool) -> Iterator[dict[str, str]]:
    """Yield the environment of `dora up` on a PostgreSQL that ends with the block; an empty one for SQLite."""
    if not wanted:
        yield {}
        return
    if postgres_server.binaries() is None:
        raise SystemExit("no PostgreSQL server in /usr/lib/postgresql: apt install postgresql")
    with postgres_server.postgres_server() as server:
        yield {"DORA_POSTGRES": server.url}


def main() -> None:
    parser = argument_parser(__doc__)
    parts = ["flows", "shards", "metrics"]
    parser.add_argument("--only", nargs="*", choices=parts, default=parts)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--shards", type=int, default=500)
    parser.add_argument("--metrics", type=int, default=50_000)
    parser.add_argument("--batches", type=int, default=1, help="how many times so many flow runs, one after another")
    parser.add_argument("--postgres", action="store_true", help="the servers' databases in PostgreSQL, started for this command")
    options = parser.parse_args()
    rows, lost = list[Row](), 0
    if "shards" in options.only:
        found, bad = shards(options.shards)
        rows, lost = rows + found, lost + bad
    if {"flows", "metrics"} & set(options.only):
        with tempfile.TemporaryDirectory(prefix="load-") as folder, database(options.postgres) as postgres:
            machine = Machine(Path(folder) / "home")
            machine.environment |= postgres
            try:
                machine.urls = machine.dora("up")["services"]
                if "metrics" in options.only:
                    process = Settings(home=machine.home).services().services["mlflow"].process._find()
                    found, bad = metrics(
                        machine.urls["mlflow"], options.metrics, lambda: {"mlflow": [process, *process.children(recursive=True)]}
                    )
                    rows, lost = rows + found, lost + bad
                for batch in range(1, options.batches + 1) if "flows" in options.only else ():
                    found, bad = flow_runs(machine, options.runs, batch)
                    rows, lost = rows + found, lost + bad
                    print("\n".join(f"{row.what}: {row.figure} ({row.limit})" for row in found), flush=True)
            finally:
                machine.dora("down")
    report("Load, PostgreSQL" if options.postgres else "Load", rows, options.save)
    if lost:
        raise SystemExit(f"{lost} records were lost, doubled or left open")


if __name__ == "__main__":
    main()
