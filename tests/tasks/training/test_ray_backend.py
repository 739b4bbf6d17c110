"""Training on Ray Train through faults: ranks that die, run out of memory, or find their checkpoints torn; other numbers of workers.

Weights are the same to the last bit where every step is cut up as before, else to rounding, as in ``test_launch.py``.
"""

from __future__ import annotations

import errno
import math
import os
import pickle
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from dora_core.config.execution import Execution
from dora_core.errors import DoraError, ServiceError, StoreError, TrainingError
from dora_core.training.distributed import Worker
from dora_core.training.loop import OutOfMemory
from infra.store.journal import JournalReader, JournalWriter
from infra.store.store import ERROR, Store, sha256_file
from tasks.runtime.stage import execute
from tasks.stages import align
from tests.faults import Recovery
from tests.tasks.training.alignments import Start, align_spec, own_store
from tests.tasks.training.test_launch import all_steps, assert_close, assert_nothing_left, build_align_task, cramped, model_file

TWO = Execution(workers=2, checkpoint_every=4, micro_batch_size=4)
ONE = TWO.model_copy(update={"workers": 1})
EPOCHS = 8.0


def test_gradients_in_host_memory_are_reduced_by_gloo() -> None:
    from tasks.training.ray_backend import collectives

    gpus = {"gpus_per_worker": 1.0, "strategy": "fsdp"}
    found = [collectives(Execution(**options)) for options in ({}, gpus, gpus | {"cpu_offload": True})]
    assert found == ["gloo", "nccl", "cpu:gloo,cuda:nccl"]


@pytest.mark.fault(30)
def test_notice_of_a_preemption_is_said_once_with_ranks_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.train
    from ray.train.v2.api.preemption import PreemptionInfo

    from tasks.training.ray_backend import _RayHooks

    store = Store(str(tmp_path))
    hooks = _RayHooks(str(tmp_path), tmp_path, JournalWriter(store.folder("align", "0" * 64)), Worker())
    monkeypatch.setattr("tasks.training.ray_backend.NOTICE_SECONDS", 0.0)
    told = [None, PreemptionInfo(1000 * (int(time.time()) + 60), {"node-b": [3, 2]})] + [PreemptionInfo(None, {"node-b": [3, 2]})] * 2
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: told.pop(0))
    assert [hooks.leaves(done) for done in (1, 2, 3)] == [False, True, False], "the same nodes are news once"
    told[0] = PreemptionInfo(None, {"node-c": [0]})
    assert hooks.leaves(4)
    first, second = (event["text"] for event in JournalReader(store, "align", "0" * 64).new_events())
    assert re.fullmatch(r"the node of rank 2, 3 will be taken away within (59|60) s: a checkpoint of step 2 is written now", first)
    assert second == "the node of rank 0 will be taken away: a checkpoint of step 4 is written now"


@pytest.fixture(scope="module")
def whole(pipeline_start: Start, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """The model of two workers that nothing happened to."""
    store, spec = own_store(pipeline_start, tmp_path_factory.mktemp("whole")), align_spec(pipeline_start, TWO, EPOCHS)
    execute(spec, align.run, store)
    return model_file(store, spec)


@contextmanager
def killing(rank: int, step: int, spec: align.Spec, store: Store, recovery: Recovery) -> Iterator[None]:
    """kill −9 of a rank after ``step``, while the block runs."""
    struck: list[int] = []
    before = set(store.list(f"align/{spec.digest()}/journal"))
    reader = JournalReader(store, "align", spec.digest(), seen=set(before))

    def strike() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not struck:
            if any(e["kind"] == "progress" and e["done"] >= step for e in reader.new_events()):
                [zero] = {int(name.split("-")[1]) for name in reader.seen - before}  # rank 0 alone writes it, under its process id
                workers = {p.pid for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())}
                struck.append(zero if rank == 0 else (workers - {zero}).pop())
                recovery.begins()
                os.kill(struck[0], signal.SIGKILL)
            time.sleep(0.05)

    killer = threading.Thread(target=strike)
    killer.start()
    yield
    killer.join()
    assert struck, "no worker was found to kill"


@pytest.mark.component
@pytest.mark.fault(4)
@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.chaos)])
def test_a_killed_rank_ends_with_the_same_weights(
    rank: int, pipeline_start: Start, tmp_path: Path, whole: Path, recovery: Recovery
) -> None:
    """kill −9 in a step drawn by a seed: Ray Train restarts both, training resumes, no bit differs."""
    spec, store = align_spec(pipeline_start, TWO, EPOCHS), own_store(pipeline_start, tmp_path)
    step = random.Random(rank).randrange(6, 20)
    with killing(rank, step, spec, store, recovery):
        result = execute(spec, align.run, store)
    recovery.ends()
    resumed = result["facts"]["resumed_from"]
    assert resumed is not None and resumed >= step // 4 * 4, "the run was over before the kill, or finished steps were done again"
    assert result["facts"]["warnings"] == []
    assert sha256_file(model_file(store, spec)) == sha256_file(whole)
    assert all_steps(result)
    assert_nothing_left(store, spec)


def dies_while_it_uploads(start, worker, *, store_uri, **arguments):
    """Rank 0 copies one file of its second checkpoint into the store, and is gone; once."""
    from ray.train.v2._internal.execution import storage

    copy, trace, copied = storage._pyarrow_fs_copy_files, Path(store_uri) / "struck", []

    def half(source, destination, **filesystems):
        copied.append(destination)
        if worker.rank == 0 and len(copied) == 2 and not trace.exists():
            shutil.copy(Path(source) / "__0_0.distcp", destination)
            trace.write_text(destination)
            os.kill(os.getpid(), signal.SIGKILL)
        copy(source, destination, **filesystems)

    storage._pyarrow_fs_copy_files = half
    return build_align_task(start, worker, store_uri=store_uri, **arguments)


@pytest.mark.component
@pytest.mark.chaos
@pytest.mark.fault(5, 19)
def test_a_rank_killed_while_it_writes_a_checkpoint(
    pipeline_start: Start, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, store = align_spec(pipeline_start, TWO, EPOCHS), own_store(pipeline_start, tmp_path)
    monkeypatch.setattr(align, "build_task", dies_while_it_uploads)
    result = execute(spec, align.run, store)
    assert f"align-{spec.digest()}/checkpoint_" in (store.local_root / "struck").read_text()
    assert result["facts"]["resumed_from"] == 4, "the one before: of step 8 there was one file"
    assert all_steps(result) and result["facts"]["warnings"] == []
    assert sha256_file(model_file(store, spec)) == sha256_file(whole)
    assert_nothing_left(store, spec)


def cramped_rank_one(start, worker, **arguments):
    task = build_align_task(start, worker, **arguments)
    return cramped(task, int(max(task.tokens)), first_step=6, rank=1)


@pytest.mark.component
@pytest.mark.chaos
@pytest.mark.fault(3)
def test_out_of_memory_on_one_rank_while_the_other_waits_for_it(
    pipeline_start: Start, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It happens twice, in whatever step comes after the sixth, and no death is allowed: running out of memory is none."""
    spec = align_spec(pipeline_start, TWO.model_copy(update={"max_failures": 0}), EPOCHS)
    store = own_store(pipeline_start, tmp_path)
    monkeypatch.setattr(align, "build_task", cramped_rank_one)
    result = execute(spec, align.run, store)
    warnings = result["facts"]["warnings"]
    assert len(warnings) >= 2 and all("set execution.align.micro_batch_tokens to " in w for w in warnings)
    assert result["facts"]["resumed_from"] >= 4 and all_steps(result)
    assert_close(model_file(store, spec), whole)
    assert_nothing_left(store, spec)


@pytest.mark.fault(3, 4, 13)
def test_only_what_every_attempt_would_find_ends_a_run_at_once(tmp_path: Path) -> None:
    """By itself, not beside a death, of which it may be a consequence. What Ray does with it: the tests after this one."""
    from ray.train import ControllerError

    from tasks.training.ray_backend import _EndAtOnce

    end = _EndAtOnce(tmp_path)
    finding, death = TrainingError("not finite"), RuntimeError("the actor died")
    for heals in ({0: death}, {1: OutOfMemory("smaller batches fit")}, {0: finding, 1: death}, {0: ServiceError("not reachable")}):
        end.after_exception(None, heals)
    for failures in ({1: finding}, {0: finding, 1: TrainingError("the same")}):
        with pytest.raises(TrainingError) as error:
            end.after_exception(None, failures)
        assert error.value is finding
    with pytest.raises(StoreError, match="the disk is full"):
        end.after_exception(None, {0: OSError(errno.ENOSPC, "No space left on device")})
    again = pickle.loads(pickle.dumps(ControllerError(OutOfMemory("m", hint="h", retryable=True)))).controller_failure
    assert again.to_json() == {"type": "OutOfMemory", "message": "m", "hint": "h", "retryable": True}


Fail = Callable[[int, torch.nn.Module, Path], None]


def failing(start, worker, *, store_uri, fail: Fail, **arguments):
    """In step 6, on every rank, ``fail(rank, module, folder of the store)``. A file for each start of a rank."""
    (Path(store_uri) / f"started-{worker.rank}-{os.getpid()}").touch()
    task = build_align_task(start, worker, store_uri=store_uri, **arguments)
    backward = task.backward

    def then_fail(module, micro_batches, step):
        if step == 6:
            fail(worker.rank, module, Path(store_uri))
        return backward(module, micro_batches, step)

    task.backward = then_fail
    return task


def overflow(rank: int, module: torch.nn.Module, store: Path) -> None:
    """On all ranks alike."""
    with torch.no_grad():
        next(module.parameters())[:] = math.inf


def run_out_of_memory_on_one_rank(rank: int, module: torch.nn.Module, store: Path) -> None:
    """Where no smaller batch helps; the other rank continues, and waits in its next step."""

    def step(optimizer: torch.optim.Optimizer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 1.00 GiB.")

    if rank == 1:
        torch.optim.AdamW.step = step  # in this rank's process


@pytest.mark.component
@pytest.mark.chaos
@pytest.mark.parametrize(
    ("fail", "message", "hint"),
    [
        (overflow, "the gradient is not finite at step 6", "lower optimization.learning_rate"),
        pytest.param(
            run_out_of_memory_on_one_rank,
            "out of memory while the weights were changed in step 6: CUDA",
            "optimization.lora",
            marks=pytest.mark.fault(3),
        ),
    ],
    ids=["all ranks", "one rank"],
)
def test_what_every_attempt_would_find_ends_the_run_at_once(
    fail: Fail, message: str, hint: str, pipeline_start: Start, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two deaths would be survived. Each rank is started once, the error arrives whole, and no worker is left."""
    spec, store = align_spec(pipeline_start, TWO, EPOCHS), own_store(pipeline_start, tmp_path)
    assert spec.execution.max_failures == 2
    monkeypatch.setattr(align, "build_task", partial(failing, fail=fail))
    with pytest.raises(DoraError, match=message) as error:
        execute(spec, align.run, store)
    started = {int(pid): rank for _, rank, pid in (path.name.split("-") for path in store.local_root.glob("started-*"))}
    assert sorted(started.values()) == ["0", "1"]
    assert hint in error.value.hint and not error.value.retryable
    assert store.read_json(f"align/{spec.digest()}/{ERROR}") == error.value.to_json()
    ranks = [process for process in psutil.Process().children(recursive=True) if process.pid in started]
    assert psutil.wait_procs(ranks, timeout=30)[1] == []


def lose_the_disk_once(rank: int, module: torch.nn.Module, store: Path) -> None:
    if rank == 0 and not (store / "struck").exists():
        (store / "struck").touch()
        raise OSError(errno.ESTALE, "Stale file handle")


@pytest.mark.component
@pytest.mark.chaos
@pytest.mark.fault(4)
def test_an_exception_that_nobody_foresaw_is_tried_again(
    pipeline_start: Start, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one rank, which stays alive; the other waits for it in a collective."""
    spec, store = align_spec(pipeline_start, TWO, EPOCHS), own_store(pipeline_start, tmp_path)
    monkeypatch.setattr(align, "build_task", partial(failing, fail=lose_the_disk_once))
    result = execute(spec, align.run, store)
    assert (store.local_root / "struck").exists() and result["facts"]["resumed_from"] == 4
    assert len(list(store.local_root.glob("started-*"))) == 4, "both ranks, twice"
    assert sha256_file(model_file(store, spec)) == sha256_file(whole)
    assert all_steps(result)
    assert_nothing_left(store, spec)


def interrupt(store: Store, spec: align.Spec, rank: int, step: int, recovery: Recovery) -> None:
    """Run until a rank dies, which this run does not survive; the error names the rank and the next step."""
    spec = spec.model_copy(update={"execution": spec.execution.model_copy(update={"max_failures": 0})})
    with killing(rank, step, spec, store, recovery), pytest.raises(TrainingError, match=f"rank {rank}: .*died") as error:
        execute(spec, align.run, store)
    assert store.read_json(f"align/{spec.digest()}/{ERROR}") == error.value.to_json()
    assert "run again" in error.value.hint and "execution.align.max_failures" in error.value.hint


@pytest.fixture(scope="module")
def torn(pipeline_start: Start, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[Path, align.Spec]:
    """The store of an interrupted run of two workers: copy it."""
    spec, store = align_spec(pipeline_start, TWO, EPOCHS), own_store(pipeline_start, tmp_path_factory.mktemp("torn"))
    interrupt(store, spec, rank=1, step=10, recovery=Recovery())
    return store.local_root, spec


@pytest.mark.component
@pytest.mark.chaos
@pytest.mark.fault(21)
def test_other_numbers_of_workers_go_on_from_the_same_checkpoints(
    torn: tuple[Path, align.Spec], tmp_path: Path, whole: Path, recovery: Recovery
) -> None:
    """Interrupted with two, gone on with by one, interrupted again, finished by two."""
    spec, store = torn[1], Store(str(shutil.copytree(torn[0], tmp_path / "store")))
    interrupt(store, spec.model_copy(update={"execution": ONE}), rank=0, step=20, recovery=recovery)
    steps = [e["step"] for e in JournalReader(store, "align", spec.digest()).new_events() if e["kind"] == "metrics"]
    assert steps.count(0) == 1 and steps.count(7) == 1, "one went on from the checkpoint of two"
    result = execute(spec, align.run, store)
    recovery.ends()
    assert result["facts"]["resumed_from"] >= 20 and all_steps(result) and result["facts"]["warnings"] == []
    assert_close(model_file(store, spec), whole)
    assert_nothing_left(store, spec)


def cut_newest(run: Path) -> None:
    shard = sorted(run.glob("checkpoint_*/__1_0.distcp"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1])


def cut_record(run: Path) -> None:
    from tasks.training.ray_backend import RECORD

    (run / RECORD).write_bytes((run / RECORD).read_bytes()[:100])


def lose_newest(run: Path) -> None:
    shutil.rmtree(sorted(run.glob("checkpoint_2*"))[-1])


@pytest.mark.component
@pytest.mark.chaos
@pytest.mark.fault(5, 23)
@pytest.mark.parametrize(
    ("damages", "reasons"),
    [
        ([cut_record, cut_newest], ["__1_0.distcp is damaged", "Ray Train's record of its checkpoints"]),
        ([lose_newest], ["Ray Train's record of its checkpoints"]),
    ],
    ids=["cut", "lost"],
)
def test_damaged_checkpoints_of_ray_train_cost_steps_and_nothing_else(
    damages: list[Callable[[Path], None]], reasons: list[str], torn: tuple[Path, align.Spec], tmp_path: Path, whole: Path
) -> None:
    """Complete checkpoints are found, whatever Ray Train's record says; the run is named after the digest, and its folder with it."""
    spec, store = torn[1], Store(str(shutil.copytree(torn[0], tmp_path / "store")))
    for damage in damages:
        damage(store.local_root / "align" / spec.digest() / "scratch" / f"align-{spec.digest()}")
    result = execute(spec, align.run, store)
    warnings = result["facts"]["warnings"]
    assert len(warnings) == len(reasons) and all(reason in warning for reason, warning in zip(reasons, warnings, strict=True))
    assert result["facts"]["resumed_from"] >= 4 and all_steps(result)
    assert sha256_file(model_file(store, spec)) == sha256_file(whole)
    assert_nothing_left(store, spec)
