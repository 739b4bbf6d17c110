"""Machines that scoring and sampling lose, on real clusters: a node of two is gone, and Ray's object store and its disk are full.

Each in a process of its own, whose Ray is not that of other tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dora_core.config.execution import Execution
from dora_core.errors import StageFailed
from infra.store.store import Store
from tasks.runtime.shards import run_shards
from tasks.runtime.workers import Worker
from tests.shared_ray import EQUAL_PRIORITY, ROOT
from tests.tasks.runtime.test_shards import Doubler, context_of

pytestmark = [pytest.mark.component, pytest.mark.chaos]

ROWS = pa.table({"key": [f"row {i}" for i in range(60)], "value": pa.array([float(i) for i in range(60)])})
MIB, FOUND = 2**20, "found.json"


class Slow(Doubler):
    """Doubles a shard in half a second, whose rows it has written to ``calls`` before."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        doubled = super().__call__(rows)
        time.sleep(0.5)
        return doubled


class Large(Worker):
    """Gives 30 MiB for every row."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        return pa.table({"key": rows["key"], "bytes": pa.array([bytes(30 * MIB)] * rows.num_rows, pa.large_binary())})


def on_two_nodes(folder: str) -> None:
    """Lose the second of two nodes when some shards are finished."""
    import threading

    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    context, calls = context_of(Store(f"{folder}/store")), Path(folder) / "calls.txt"
    where = context.path / "scratch" / "double"

    def lose() -> None:
        while len(list(where.glob("*.json"))) < 6:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)

    losing = threading.Thread(target=lose, daemon=True)  # an error before it must end the process
    losing.start()
    execution = Execution(workers=2, cpus_per_worker=1, shard_rows=2)
    table = run_shards(context, ROWS, name="double", worker=partial(Slow, str(calls)), execution=execution, unit="rows")
    losing.join()
    attempts = [json.loads(marker.read_text())["attempt"] for marker in where.glob("*.json")]
    found = {"keys": table["key"].to_pylist(), "twice": table["twice"].to_pylist(), "attempts": attempts}
    (Path(folder) / FOUND).write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


def with_little_space(folder: str) -> None:
    """Return more than Ray's object store holds, which may spill to no disk."""
    import ray

    os.environ |= {"RAY_local_fs_capacity_threshold": "0.01"}
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False, object_store_memory=80 * MIB)
    try:
        context = context_of(Store(f"{folder}/store"))
        run_shards(context, ROWS, name="double", worker=Large, execution=Execution(workers=2, shard_rows=5), unit="rows")
    except StageFailed as error:
        (Path(folder) / FOUND).write_text(json.dumps(error.to_json()))
    ray.shutdown()


def in_a_process(function: Any, folder: Path) -> dict[str, Any]:
    code = f"import sys; from {__name__} import {function.__name__} as run; run(sys.argv[1])"
    own = os.environ | EQUAL_PRIORITY | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    child = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=600, env=own)
    assert child.returncode == 0, child.stderr[-3000:]
    document: dict[str, Any] = json.loads((folder / FOUND).read_text())
    return document


@pytest.mark.fault(29)
def test_shards_of_a_lost_node_go_to_the_other_and_no_other_is_repeated(unconnected: None, tmp_path: Path) -> None:
    found = in_a_process(on_two_nodes, tmp_path)
    assert max(found["attempts"]) > 1, "the node was lost while its worker had a shard"
    assert found["keys"] == ROWS["key"].to_pylist() and found["twice"] == [2 * value for value in ROWS["value"].to_pylist()]
    begun = (tmp_path / "calls.txt").read_text().splitlines()
    repeated = len(begun) - len(set(begun))
    assert set(begun) == set(found["keys"]) and repeated <= 2 * 2, "at most the shard in work on the lost node, and one given to it already"


@pytest.mark.fault(31)
def test_a_full_object_store_and_its_full_disk_end_the_step_with_the_keys_to_lower(unconnected: None, tmp_path: Path) -> None:
    error = in_a_process(with_little_space, tmp_path)
    assert "Ray's object store" in error["message"], error
    assert "shard_rows" in error["hint"], error
