"""Scoring whose workers die, fail or run out of memory: what comes out is what a run without faults writes, and no finished shard is
computed again."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dora_core.classifier.model import Batch, SourceClassifier
from dora_core.errors import ModelError, StageFailed
from infra.store.store import Store
from tests.faults import Recovery
from tests.tasks.scoring import ALONE, SHARD_ROWS, TWO_ACTORS, markers, run, scored, shard_of, written


@pytest.mark.fault(1)
@pytest.mark.component
@pytest.mark.chaos
def test_an_actor_killed_in_the_middle_of_a_shard_costs_that_shard(ray_cluster, store, world, meet, recovery: Recovery, caplog) -> None:
    fault = meet("killed")

    def kill() -> None:
        while not (fault.folder / "pid").exists() or not (pid := (fault.folder / "pid").read_text()).endswith("\n"):
            time.sleep(0.01)
        recovery.begins()
        os.kill(int(pid), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    run(store, world, TWO_ACTORS)
    recovery.ends()
    assert written(store) == world.files
    assert scored(fault) == sorted(world.keys)
    start = shard_of(fault, world)
    assert f"a worker died: responses {start} to {min(start + SHARD_ROWS, len(world.keys))}, once, is tried again" in caplog.text


@pytest.mark.fault(2)
@pytest.mark.component
@pytest.mark.chaos
def test_a_shard_that_kills_every_worker_is_named_and_costs_no_other(ray_cluster, store, world, meet, recovery: Recovery) -> None:
    fault, start = meet("dies"), shard_of(meet("dies"), world)
    with pytest.raises(StageFailed) as caught:
        run(store, world, TWO_ACTORS)
    recovery.begins()
    stop = min(start + SHARD_ROWS, len(world.keys))
    assert f"the same rows killed every worker that took them: responses {start} to {stop} 2 times" in caught.value.message
    assert "lower batch_tokens of execution.calibrate" in caught.value.hint and "run the same command again" in caught.value.hint
    others = [key for row, key in enumerate(world.keys) if not start <= row < stop]
    assert scored(fault) == sorted(others) and markers(store).keys() == set(range(0, len(world.keys), SHARD_ROWS)) - {start}

    meet("cured")  # a machine with more memory, say
    (fault.folder / "pid").touch()
    run(store, world, TWO_ACTORS)
    assert written(store) == world.files and scored(fault) == sorted(world.keys)


@pytest.mark.fault(21)
@pytest.mark.component
@pytest.mark.chaos
@pytest.mark.parametrize("then", [ALONE, TWO_ACTORS.model_copy(update={"workers": 1})], ids=["no actor", "one actor"])
def test_another_number_of_workers_finishes_what_two_have_begun(ray_cluster, store, world, meet, recovery: Recovery, then) -> None:
    fault = meet("raises")
    with pytest.raises(ConnectionError, match="network is gone"):
        run(store, world, TWO_ACTORS)
    recovery.begins()
    finished = markers(store)
    run(store, world, then)
    assert written(store) == world.files
    again = scored(fault)  # a shard that its actor had finished when all of them were ended is there twice
    kept = [key for row, key in enumerate(world.keys) if row // SHARD_ROWS * SHARD_ROWS in finished]
    assert kept and all(again.count(key) == 1 for key in kept) and set(again) == set(world.keys)


@pytest.mark.fault(3)
def test_out_of_memory_takes_smaller_batches_and_says_which_key_to_set(store, world, monkeypatch, recovery: Recovery, caplog) -> None:
    """A device on which 300 padded tokens fit; the first attempt also dies, and the second still knows."""
    limit, forward, sizes = 300, SourceClassifier.forward, list[int]()

    def limited(model: SourceClassifier, batch: Batch) -> torch.Tensor:
        sizes.append(batch.ids.numel())
        if sizes[-1] > limit:
            recovery.begins()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 1 GiB")
        return forward(model, batch)

    exact = run(Store(str(shutil.copytree(store.local_root, store.local_root.parent / "exact"))), world)
    monkeypatch.setattr(SourceClassifier, "forward", limited)
    result = run(store, world)
    recovery.ends()
    assert max(sizes) > 2 * limit and len([s for s in sizes if s > limit]) <= 6, "what did not fit is not tried again"
    (warning,) = [w for w in result["facts"]["warnings"] if "memory" in w]
    tokens = int(warning.rsplit("cut to ", 1)[1].split(":")[0])
    assert limit / 4 < tokens <= limit and "set batch_tokens of execution.calibrate" in warning
    assert "out of memory with a batch of" in caplog.text and not [w for w in exact["facts"]["warnings"] if "memory" in w]
    ours, theirs = (
        pq.read_table(next(p.glob("calibrate/*/calibration.parquet"))) for p in (store.local_root, store.local_root.parent / "exact")
    )
    assert ours.select(["record_id", "response_index", "fold"]) == theirs.select(["record_id", "response_index", "fold"])
    np.testing.assert_allclose(ours["h"].to_numpy(), theirs["h"].to_numpy(), rtol=1e-5)


@pytest.mark.fault(3)
def test_a_row_that_does_not_fit_alone_ends_the_stage_with_what_to_change(store, world, monkeypatch) -> None:
    def never(model: SourceClassifier, batch: Batch) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(SourceClassifier, "forward", never)
    with pytest.raises(ModelError, match="out of memory even one row at a time") as caught:
        run(store, world)
    assert "gpus_per_worker" in caught.value.hint and not caught.value.retryable
