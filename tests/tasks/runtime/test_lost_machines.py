"""Sharded inference, which scoring and sampling share, on a cluster that loses a node or has no memory for objects."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dora_core.config.execution import Execution
from dora_core.errors import StageFailed
from infra.store.journal import JournalWriter
from infra.store.store import Store
from tasks.runtime.shards import run_shards
from tasks.runtime.stage import StageContext
from tasks.runtime.workers import Worker
from tests.faults import Recovery
from tests.shared_ray import EQUAL_PRIORITY, ROOT

pytestmark = [pytest.mark.component, pytest.mark.chaos]
TWO = Execution(workers=2, shard_rows=2)


class Placed(Worker):
    """Doubles ``value``, and appends the node to ``calls``; a shard takes ``seconds``."""

    def __init__(self, calls: str, seconds: float):
        self.calls, self.seconds = Path(calls), seconds

    def __call__(self, rows: pa.Table) -> pa.Table:
        import ray

        with self.calls.open("a") as file:
            file.write(f"{ray.get_runtime_context().get_node_id()}\n")
        time.sleep(self.seconds)
        return pa.table({"twice": pa.array([2 * v for v in rows["value"].to_pylist()])})


class Large(Worker):
    """Returns 12 MB for every row."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        return pa.table({"value": rows["value"], "bytes": pa.array([bytes([value]) * 12_000_000 for value in rows["value"].to_pylist()])})


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    store = Store(str(tmp_path / "store"))
    folder = store.folder("generate", "0" * 64)
    return StageContext(store, folder, JournalWriter(folder), logging.getLogger("test"))


@pytest.fixture
def connect(unconnected: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Connect this process to a Ray with these options."""
    import ray

    for name, value in {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT), **EQUAL_PRIORITY}.items():
        monkeypatch.setenv(name, value)

    def connect(**options: Any) -> None:
        ray.init(log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}, **options)

    yield connect
    ray.shutdown()


@pytest.mark.fault(29)
def test_a_node_lost_in_scoring_or_sampling_costs_its_shards(
    context: StageContext, tmp_path: Path, connect: Callable[..., None], recovery: Recovery, caplog: pytest.LogCaptureFixture
) -> None:
    """Two nodes of one CPU and a worker each; one node goes when both have begun. The other finishes all shards."""
    from ray.cluster_utils import Cluster

    rows = pa.table({"value": list(range(40))})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        connect(address=cluster.address)
        calls = tmp_path / "calls"

        def lose() -> None:
            while not calls.exists() or len(set(calls.read_text().split())) < 2:
                time.sleep(0.05)
            recovery.begins()
            cluster.remove_node(second, allow_graceful=False)

        thread = threading.Thread(target=lose, daemon=True)
        thread.start()
        worker = partial(Placed, str(calls), 1.0)
        table = run_shards(context, rows, name="sampled", worker=worker, execution=TWO, unit="prompts")
        recovery.ends()
        thread.join()
        assert table["twice"].to_pylist() == [2 * value for value in range(40)]
        assert "a worker died: prompts " in caplog.text and "is tried again" in caplog.text
        assert 21 <= len(calls.read_text().split()) <= 22, "20 shards, and the one that the node held"
    finally:
        cluster.shutdown()


@pytest.mark.fault(31)
def test_a_full_object_store_spills_to_disk(context: StageContext, connect: Callable[..., None]) -> None:
    """72 of the store's 80 MB are taken by objects that are kept; six results of 24 MB come on top."""
    import ray

    connect(address="local", num_cpus=2, include_dashboard=False, object_store_memory=80_000_000)
    kept = [ray.put(bytes([n]) * 24_000_000) for n in range(3)]
    rows = pa.table({"value": list(range(12))})
    table = run_shards(context, rows, name="sampled", worker=Large, execution=TWO, unit="prompts")
    assert table["bytes"].to_pylist() == [bytes([n]) * 12_000_000 for n in range(12)]
    assert [ray.get(one)[:1] for one in kept] == [bytes([n]) for n in range(3)]


@pytest.mark.fault(31)
def test_a_full_object_store_that_cannot_spill_names_the_key_to_lower(context: StageContext, connect: Callable[..., None]) -> None:
    import ray

    settings = {"automatic_object_spilling_enabled": False}
    connect(address="local", num_cpus=2, include_dashboard=False, object_store_memory=80_000_000, _system_config=settings)
    kept = [ray.put(bytes([n]) * 24_000_000) for n in range(3)]
    with pytest.raises(StageFailed, match=r"Ray's object store is full") as error:
        run_shards(context, pa.table({"value": [1, 2]}), name="sampled", worker=Large, execution=TWO, unit="prompts")
    assert "lower workers or shard_rows of execution.generate" in error.value.hint and len(kept) == 3
