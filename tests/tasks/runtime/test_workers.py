"""Workers of sharded steps: built once from plain arguments, on their device, with the threads they are given."""

from __future__ import annotations

import os
import pickle
from functools import partial

import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from dora_core.config.execution import Execution
from tasks.runtime.workers import ModelWorker, Worker, WorkerArguments, use_threads
from tests.tasks.conftest import one_thread


class AddArguments(WorkerArguments):
    added: int


class Adder(ModelWorker[AddArguments]):
    def load(self) -> None:
        self.loaded = getattr(self, "loaded", 0) + 1

    def __call__(self, rows: pa.Table) -> pa.Table:
        return pa.table({"sum": pa.array([value + self.arguments.added for value in rows["value"].to_pylist()])})


def arguments(**execution: float) -> AddArguments:
    return AddArguments(store_uri="/store", execution=Execution(**execution), added=2)


def test_a_worker_travels_as_an_importable_class_and_plain_arguments() -> None:
    build = pickle.loads(pickle.dumps(partial(Adder, arguments())))
    worker = build()
    assert isinstance(worker, Worker) and worker.loaded == 1
    assert worker(pa.table({"value": [1, 2]}))["sum"].to_pylist() == [3, 4]


def test_device_precision_and_budget_follow_from_the_execution() -> None:
    here = Adder(arguments(batch_tokens=512))
    assert (here.device.type, here.dtype, here.budget.tokens, here.budget.lowered) == ("cpu", torch.float32, 512, None)
    there = Adder(arguments(gpus_per_worker=0.5))
    assert (there.device.type, there.dtype) == ("cuda", torch.bfloat16)


def test_arguments_are_checked_where_they_are_made() -> None:
    with pytest.raises(ValidationError, match="added"):
        AddArguments(store_uri="/store", execution=Execution())  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="model"):
        AddArguments(store_uri="/store", execution=Execution(), added=1, model="x")  # type: ignore[call-arg]


@pytest.mark.parametrize(("cpus", "threads"), [(3.0, 3), (0.5, 1)])
def test_threads_are_those_of_the_worker(monkeypatch: pytest.MonkeyPatch, cpus: float, threads: int) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "9")
    with one_thread():
        use_threads(Execution(cpus_per_worker=cpus))
        assert torch.get_num_threads() == threads and os.environ["RAYON_NUM_THREADS"] == str(threads)
