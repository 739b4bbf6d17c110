"""Notices about lost nodes: at once, again while it waits, and when all ranks run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dora_core.config.execution import Execution
from infra.store.journal import JournalEvent, JournalReader
from tasks.training.lost_nodes import Losses, Node, Placement, placements
from tests.shared_ray import EQUAL_PRIORITY, ROOT
from tests.tasks.training.alignments import Start, align_spec, own_store

HEAD, OTHER = Node("a" * 56, "127.0.0.1", True, cpus=1.0), Node("b" * 56, "127.0.0.3", True, cpus=1.0)
GONE = Node(OTHER.id, OTHER.address, False)
TWO = Execution(workers=2)


def ranks(*places: tuple[Node, float]) -> list[Placement]:
    return [Placement(rank=n, node=node.id, address=node.address, started=started) for n, (node, started) in enumerate(places)]


def test_a_lost_node_is_said_at_once_with_rank_step_and_how_to_go_on() -> None:
    losses, before = Losses("align", TWO), ranks((HEAD, 10.0), (OTHER, 10.0))
    assert list(losses.look([HEAD, OTHER], before, (3, 204), 20.0)) == []
    [said] = losses.look([HEAD, GONE], before, (115, 204), 100.0)
    assert said == (
        "node 127.0.0.3 (bbbbbbbb) is lost, and with it rank 1, at step 115 of 204; waits for 2 × 1 CPU, the cluster has 1 CPU; "
        "it goes on by itself when the node is back; with fewer: stop this run, and run it again with --set execution.align.workers=1, "
        "which continues from the last checkpoint"
    )
    assert list(losses.look([HEAD, GONE], before, (115, 204), 129.0)) == [], "said once"
    [again] = losses.look([HEAD, GONE], before, (115, 204), 130.0)
    assert again.startswith("waits for 2 × 1 CPU, the cluster has 1 CPU, for 30 s now; it goes on by itself")
    back = Node("c" * 56, "127.0.0.3", True, cpus=1.0)
    assert list(losses.look([HEAD, GONE, back], ranks((HEAD, 140.0), (OTHER, 10.0)), None, 145.0)) == [], "rank 1 is not there yet"
    [ended] = losses.look([HEAD, GONE, back], ranks((HEAD, 140.0), (back, 141.0)), None, 150.0)
    assert ended == "all 2 ranks run again, 50 s after the loss; training continues from its last checkpoint"
    assert losses.lost_at is None and list(losses.look([HEAD, GONE, back], ranks((HEAD, 140.0), (back, 141.0)), None, 999.0)) == []


def test_gpus_are_counted_where_they_are_needed() -> None:
    execution = Execution(workers=4, cpus_per_worker=2, gpus_per_worker=1)
    here, gone = Node("a" * 56, "10.0.0.1", True, cpus=16.0, gpus=2.0), Node("b" * 56, "10.0.0.2", False)
    four = ranks((here, 1.0), (here, 1.0), (gone, 1.0), (gone, 1.0))
    [said] = Losses("align", execution).look([here, gone], four, None, 2.0)
    assert "with it ranks 2, 3; waits for 4 × 2 CPU and 1 GPU, the cluster has 16 CPU and 2 GPU" in said
    assert "execution.align.workers=2" in said, "two GPUs are left"


def test_a_cluster_without_room_names_no_smaller_number() -> None:
    [said] = Losses("sft", Execution(workers=1)).look([GONE], ranks((OTHER, 1.0)), (1, 2), 2.0)
    assert said.endswith("it goes on by itself when the node is back")


TRAIN = """
import json, sys
from pathlib import Path
import ray
from infra.store.journal import JournalWriter
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages import align
spec = align.Spec.model_validate_json(Path(sys.argv[1]).read_text())
ray.init(address=sys.argv[3], logging_level="WARNING")
result = execute(spec, align.run, Store(sys.argv[2]))
print(json.dumps(result["facts"]["resumed_from"]), flush=True)
"""


@pytest.mark.component
@pytest.mark.chaos
@pytest.mark.fault(4, 29)
def test_a_training_on_two_nodes_outlives_one_and_says_so(
    pipeline_start: Start, tmp_path: Path, unconnected: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks on two nodes; the second node is killed after step 6 of 360, so that training cannot end first, and another comes."""
    from ray.cluster_utils import Cluster

    for name, value in {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT), **EQUAL_PRIORITY}.items():
        monkeypatch.setenv(name, value)
    store, spec = own_store(pipeline_start, tmp_path), align_spec(pipeline_start, Execution(workers=2, checkpoint_every=4), 60.0)
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    driver = None
    try:
        second = cluster.add_node(num_cpus=1)
        command = [sys.executable, "-c", TRAIN, str(tmp_path / "spec.json"), store.uri, cluster.address]
        log = (tmp_path / "log").open("w")
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | {"DORA_HOME": str(tmp_path)})
        reader = JournalReader(store, "align", spec.digest())
        events: list[JournalEvent] = []

        def wait_for(seen: Callable[[JournalEvent], bool]) -> JournalEvent:
            deadline = time.monotonic() + 400
            while time.monotonic() < deadline:
                for event in reader.new_events():
                    events.append(event)
                    if seen(event):
                        return event
                assert driver is not None and driver.poll() is None, (
                    driver.returncode,
                    events[-3:],
                    (tmp_path / "log").read_text()[-3000:],
                )
                time.sleep(0.1)
            raise AssertionError(f"it never came; notices: {[e['text'] for e in events if e['kind'] == 'notice']}")

        wait_for(lambda e: e["kind"] == "progress" and e["done"] >= 6)
        cluster.remove_node(second, allow_graceful=False)
        lost = wait_for(lambda e: e["kind"] == "notice" and "is lost, and with it rank" in e["text"])
        assert lost["kind"] == "notice" and "waits for 2 × 1 CPU, the cluster has 1 CPU" in lost["text"]
        assert "--set execution.align.workers=1" in lost["text"] and " at step " in lost["text"]
        cluster.add_node(num_cpus=1)
        wait_for(lambda e: e["kind"] == "notice" and e["text"].startswith("all 2 ranks run again"))
        output, _ = driver.communicate(timeout=400)
        assert driver.returncode == 0, (tmp_path / "log").read_text()[-3000:]
        resumed = json.loads(output.splitlines()[-1])
        assert resumed is not None and resumed >= 4
        assert [place.rank for place in placements(store, "align", spec.digest())] in ([], [0, 1]), "scratch is deleted at the end"
    finally:
        if driver is not None and driver.poll() is None:
            driver.kill()
            driver.wait()
        cluster.shutdown()
