"""A training job on Ray Train: attempts, checkpoints, resume, permanent failures.

The Ray Train run is named after the digest: Ray resumes by (storage path, name), and another configuration under the same
name would silently resume a foreign checkpoint.

If a worker dies or raises an unexpected exception, all are started again, ``execution.max_failures`` times; a node that its provider
takes away (Ray's notice of preemption) is not a failure, and is waited out as often as it happens, from a checkpoint written on the notice.
A permanent error, with which every attempt would end (a gradient that is not finite, a refused checkpoint, a full disk), ends the run at
once. What happens to nodes and ranks is said at once (``lost_nodes.py``).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray.train.torch
from ray.exceptions import ActorDiedError
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from dora_core.config.execution import Execution
from dora_core.environment import set_default
from dora_core.errors import DoraError, TrainingError
from dora_core.remote_files import open_filesystem, ray_storage
from dora_core.training.checkpoints import PROGRESS
from dora_core.training.distributed import Worker
from dora_core.training.loop import OutOfMemory
from infra.store.journal import JournalWriter
from infra.store.store import Store, full_disk
from tasks.runtime.cluster import ray_session
from tasks.runtime.stage import StageContext
from tasks.runtime.workers import use_threads
from tasks.training.job import REPORT, Memory, TrainingJob, train, trained_folder
from tasks.training.lost_nodes import NodeWatch, record_rank
from tasks.training.report import TrainingReport

NOTICE_SECONDS = 5.0
"""Time between two questions for notices of preemption; a provider gives 30 s at least."""
CAUSE_CHARACTERS = 200
RECORD = "checkpoint_manager_snapshot.json"  # Ray Train's, in the folder of a run


def train_on_ray(context: StageContext, job: TrainingJob) -> TrainingReport:
    """Train through ``execution.max_failures`` deaths of workers and return rank 0's report. Errors: see ``tasks/training/launch.py``."""
    # Read by the Ray Train controller, started from this process: without it every report() costs about two seconds.
    set_default("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    execution, gpu = job.execution, job.execution.gpus_per_worker > 0
    storage, name = _run_folder(job).rsplit("/", 1)
    filesystem, below = ray_storage(storage)
    resources = {"CPU": execution.cpus_per_worker} | ({"GPU": execution.gpus_per_worker} if gpu else {})
    with ray_session(), NodeWatch(context, job.stage, job.digest, execution):
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(num_workers=execution.workers, use_gpu=gpu, resources_per_worker=resources),
            torch_config=TorchConfig(backend=collectives(execution)),
            run_config=RunConfig(
                name=name,
                storage_path=below,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=execution.max_failures, max_preemption_failures=-1),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                callbacks=[_EndAtOnce(context.path, (job.store_uri, job.stage, job.digest))],
            ),
        )
        while True:
            memory = Memory.of(job)
            try:
                trainer.fit()
                break
            except TrainingFailedError as error:
                if Memory.of(job) == memory:
                    raise _last_failure(job, error) from error
                # Ray counted running out of memory as a failure; halving ends by itself, so these come on top of max_failures.
            except ActorDiedError as error:
                if "CheckpointManagerInitializationError" not in str(error):
                    raise
                cause = str(error).strip().splitlines()[-1].rpartition("Error: ")[2]
                context.warn(f"Ray Train's record of its checkpoints in {storage}/{name} was discarded: {cause}")
                filesystem, path = open_filesystem(f"{storage}/{name}/{RECORD}")
                filesystem.delete_file(path)  # the checkpoints themselves are found without it
    trained_folder(context.store, job.stage, job.digest)
    return TrainingReport.model_validate(context.store.read_json(f"{job.stage}/{job.digest}/{REPORT}"))


def collectives(execution: Execution) -> str:
    """Backend of torch.distributed: with ``cpu_offload`` gradients are measured in host memory, which NCCL cannot reduce."""
    if not execution.gpus_per_worker:
        return "gloo"
    return "cpu:gloo,cuda:nccl" if execution.cpu_offload else "nccl"


class _EndAtOnce(UserCallback):  # type: ignore[misc]  # Ray has no types
    """Callback of Ray Train that ends the run after permanent errors, where Ray would start the workers again.

    An exception of a callback is an error of the controller: no attempt follows, and the workers are ended, also when they wait in a
    collective for the failed one. A permanent error beside another worker's death may be its consequence, and is tried again.
    """

    def __init__(self, path: Path, stage: tuple[str, str, str] | None = None):
        """``stage``: store, stage and digest, for the journal; plain text, because Ray sends this object to its controller."""
        self._path, self._stage = path, stage

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Say at once which ranks failed and why; raise where no attempt may follow."""
        if self._stage is not None:
            store, stage, digest = self._stage
            with suppress(OSError, DoraError):  # a full disk
                JournalWriter(Store(store).folder(stage, digest)).notice(_said(worker_exceptions))
        errors = [_permanent(error, self._path) for error in worker_exceptions.values()]
        if errors[0] is not None and all(errors):
            raise errors[0]


def _said(errors: dict[int, Exception]) -> str:
    """Describe failed ranks in one sentence each, those with the same cause together."""
    ranks: dict[str, list[int]] = {}
    for rank, error in sorted(errors.items()):
        cause = getattr(error, "health_check_failure", error)
        text = f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0][:CAUSE_CHARACTERS]}"
        ranks.setdefault(text, []).append(rank)
    return "; ".join(f"rank{'s' if len(those) > 1 else ''} {', '.join(map(str, those))} failed: {text}" for text, those in ranks.items())


def _permanent(error: Exception, folder: Path) -> DoraError | None:
    """Return the error that every attempt would end with; None if another attempt may help: a death, an unexpected exception, memory that
    smaller micro-batches fit into."""
    if isinstance(error, DoraError):
        return None if error.retryable or isinstance(error, OutOfMemory) else error
    return full_disk(error, folder)


def _last_failure(job: TrainingJob, error: TrainingFailedError) -> DoraError:
    """The last error of a run that Ray Train gave up: a worker's own error if there is one, else the ranks that died."""
    failures = getattr(error, "worker_failures", {}) or {0: getattr(error, "controller_failure", error)}
    for failure in failures.values():
        if isinstance(failure, DoraError):
            return failure
    causes = {rank: getattr(failure, "health_check_failure", failure) for rank, failure in failures.items()}
    lines = [f"rank {rank}: {type(cause).__name__}: {str(cause).strip().splitlines()[0]}" for rank, cause in causes.items()]
    return TrainingError(
        f"{job.stage} failed more than {job.execution.max_failures} times, at last because of {'; '.join(lines)}",
        hint="run again: training continues from its last checkpoint. A worker that dies without a message usually ran out of the "
        f"machine's memory (lower execution.{job.stage}.workers) or on a lost node (raise execution.{job.stage}.max_failures)",
    )


def _run_folder(job: TrainingJob) -> str:
    """Path or URI of the folder in which Ray Train keeps this run."""
    return f"{Store(job.store_uri).uri}/{job.stage}/{job.digest}/scratch/{job.stage}-{job.digest}"


def _ray_worker(config: dict[str, Any]) -> None:
    """Body of one Ray Train worker."""
    job: TrainingJob = config["job"]
    use_threads(job.execution)
    worker = Worker.current(ray.train.torch.get_device())
    folder = Store(job.store_uri).folder(job.stage, job.digest)
    record_rank(folder, worker.rank)
    journal = JournalWriter(folder)
    local = folder.path / "scratch" / f"rank-{worker.rank}"  # not in /tmp, where the files of a killed rank would stay
    try:
        report = train(job, worker, _RayHooks(_run_folder(job), local, journal, worker))
    finally:
        journal.flush()
    if worker.rank == 0:
        folder.write_json(REPORT, report.model_dump())


class _RayHooks:
    """Checkpoints through ``ray.train.report``, which uploads them and deletes old ones.

    They are listed from the storage: Ray's own record of them is not written atomically, and a torn record would hide them all.
    """

    def __init__(self, run: str, local: Path, journal: JournalWriter, worker: Worker):
        self._run, self._local, self._journal, self._worker = run, local, journal, worker
        self._looked, self._looked_at, self._next_look = 0, time.monotonic(), 0
        self._noticed: list[str] = []

    def checkpoints(self) -> Iterator[Path]:
        """Complete checkpoints, which have their last file, by the time in their names. Every rank uses the list of rank 0."""
        filesystem, root = open_filesystem(self._run)
        files = filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=True))
        found = sorted((str(Path(file.path).parent) for file in files if file.base_name == PROGRESS), reverse=True)
        for path in self._worker.gather(found)[0]:
            with Checkpoint(path, filesystem).as_directory() as folder:
                yield Path(folder)

    def save(self, folder_writer: Callable[[Path], None], step: int) -> None:
        shutil.rmtree(self._local, ignore_errors=True)
        self._local.mkdir(parents=True)
        folder_writer(self._local)
        ray.train.report({"step": step}, checkpoint=Checkpoint.from_directory(str(self._local)))
        shutil.rmtree(self._local)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._journal.metrics(step, metrics)

    def progress(self, done: int, total: int) -> None:
        self._journal.progress(done, total, "steps")

    def leaves(self, done: int) -> bool:
        """Whether Ray has notice of a node that will be taken away. Asking is a barrier of all ranks, hence once in some steps; rank 0's
        pace decides in how many."""
        if done < self._next_look:
            return False
        pace = (time.monotonic() - self._looked_at) / max(1, done - self._looked)
        stride = self._worker.gather(max(1, round(NOTICE_SECONDS / max(pace, 1e-6))))[0] if self._looked else 1
        self._looked, self._looked_at, self._next_look = done, time.monotonic(), done + stride
        info = ray.train.get_preemption_info()
        if info is None or info.preempted_node_ids == self._noticed:
            return False
        self._noticed = info.preempted_node_ids
        if self._worker.rank == 0:
            ranks = ", ".join(map(str, info.preempted_ranks))
            when = "" if info.deadline_ms is None else f" within {max(0.0, info.deadline_ms / 1000 - time.time()):.0f} s"
            text = f"the node of rank {ranks} will be taken away{when}: a checkpoint of step {done} is written now"
            self._journal.notice(text)
        return True
