"""Running a training task on Ray Train: workers, checkpoints, resume, and getting the trained weights out.

``launch`` is the only door: with ``execution.workers ≥ 1`` it starts a Ray Train run, with 0 it trains in this process. Either way
the caller's ``build`` function makes the task on each worker from plain arguments (paths and specs, never tensors), and
the trained model ends in ``<stage folder>/model``. What kind of model that is, is the job's ``kind``.

The Ray Train run is named after the digest: Ray resumes by (storage path, name), and another configuration under the same
name would silently resume a foreign checkpoint.

Out of memory in a step, training goes on from the last checkpoint with half as many tokens in a micro-batch, which changes the weights
by rounding only. A file in the stage's scratch folder remembers it, for the other ranks and the next attempt.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs

from dora_core.config import Execution, ModelConfig, OptimizationConfig
from dora_core.errors import DoraError, TrainingError
from infra.journal import JournalWriter
from infra.store import Store, full_disk
from tasks.stage import StageContext, StageRef, local_model

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dora_core.distributed import Worker
    from dora_core.logprobs import ResponseLogps
    from dora_core.reward_model import RewardModel
    from dora_core.training import OutOfMemory, Task

MEMORY = "scratch/memory.json"
RECORD = "checkpoint_manager_snapshot.json"  # Ray Train's, in the folder of a run
log = logging.getLogger("dora.training")


class CausalLM:
    """A kind of model: a language model, trained through the log-probabilities of responses.

    Every kind has these three functions and peft's name for it. ``wrap`` makes the module that is trained, with the model as its
    attribute ``model``; ``warnings`` are for people, about the wrapped module.
    """

    lora_task = "CAUSAL_LM"

    @staticmethod
    def load(source: ModelConfig | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from dora_core.models import load_policy

        return load_policy(source)

    @staticmethod
    def wrap(model: PreTrainedModel, execution: Execution) -> ResponseLogps:
        from dora_core.logprobs import ResponseLogps

        return ResponseLogps(model, share_prefix=execution.prefix_sharing)

    @staticmethod
    def warnings(module: ResponseLogps) -> list[str]:
        reason = module.unpacked_because
        return [f"prompts were computed once per response, not once per record: {reason}"] if reason else []


class ScalarHead:
    """A kind of model (see :class:`CausalLM`): any trunk under one output, trained through the rewards of responses."""

    lora_task = "SEQ_CLS"

    @staticmethod
    def load(source: ModelConfig | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from dora_core.models import grow_reward_model

        return grow_reward_model(source)

    @staticmethod
    def wrap(model: PreTrainedModel, execution: Execution) -> RewardModel:
        from dora_core.reward_model import RewardModel

        return RewardModel(model)

    @staticmethod
    def warnings(module: RewardModel) -> list[str]:
        return []


@dataclass(frozen=True)
class TrainingJob:
    """What a worker needs to train, all of it plain data.

    Attributes:
        build: importable function (start, worker, **arguments) → task.
        arguments: keyword arguments of ``build``.
        model: the starting weights, by name or as the stage that trained them.
        kind: what is made of them.
    """

    build: Callable[..., Task]
    arguments: dict[str, Any]
    model: ModelConfig | StageRef
    optimization: OptimizationConfig
    execution: Execution
    store_uri: str
    stage: str
    digest: str
    kind: type[CausalLM | ScalarHead] = CausalLM


@dataclass
class Start:
    """The starting weights on a worker, ready to be made into a task: ``module`` is the model as its kind wraps it."""

    module: Any
    tokenizer: PreTrainedTokenizerBase
    layers: list[nn.Module]


def launch(context: StageContext, job: TrainingJob) -> dict[str, Any]:
    """Train to the end, through worker deaths, and return the fit report as a dictionary.

    Raises:
        TrainingError: fewer steps than planned, or the failure of the first worker.
    """
    report = train_on_this_process(job) if job.execution.workers == 0 else _train_on_ray(context, job)
    planned = report["planned_steps"]
    if report["steps"] != planned or len(report["curve"]["loss"]) != planned:
        raise TrainingError(
            f"{job.stage} did {len(report['curve']['loss'])} of {planned} planned steps",
            hint=f"delete {context.store.uri}/{job.stage}/{job.digest} and run again; a foreign checkpoint may have been resumed",
        )
    return report


def facts(report: dict[str, Any], records: int) -> dict[str, Any]:
    """The part of its facts that every training stage has."""
    curve = {"step": list(range(report["steps"]))} | report["curve"]
    return {"records": records, "curve": curve} | {name: report[name] for name in ("steps", "resumed_from", "warnings")}


def trained_folder(store: Store, stage: str, digest: str) -> Path:
    """Folder on this machine with the trained model of a stage that may have no result yet."""
    for name in store.list(f"{stage}/{digest}/model"):
        store.download(f"{stage}/{digest}/model/{name}")
    return store.local_root / stage / digest / "model"


def train_on_this_process(job: TrainingJob) -> dict[str, Any]:
    """Train in this process without Ray (tests, debugging); resumes from the stage's scratch folder."""
    import torch

    from dora_core.distributed import Worker
    from dora_core.training import FolderHooks, OutOfMemory

    class Hooks(FolderHooks):
        def log(self, step: int, metrics: dict[str, float]) -> None:
            journal.metrics(step, metrics)

        def progress(self, done: int, total: int) -> None:
            journal.progress(done, total, "steps")

    folder = Store(job.store_uri).folder(job.stage, job.digest)
    journal = JournalWriter(folder)
    device = torch.device("cuda") if job.execution.gpus_per_worker else torch.device("cpu")
    hooks = Hooks(folder.path / "scratch" / "checkpoints")
    try:
        while True:
            try:
                return _train(job, Worker(device=device), hooks)
            except OutOfMemory:
                pass  # the error holds on to what did not fit, until here
            gc.collect()
            torch.cuda.empty_cache()
    finally:
        journal.flush()


# -------------------------------------------------------------------------------------------------------------- Ray Train


def _train_on_ray(context: StageContext, job: TrainingJob) -> dict[str, Any]:
    # Read by the Ray Train controller, started from this process: without it every report() costs about two seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    from ray.exceptions import ActorDiedError
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from tasks.cluster import ray_session

    execution, gpu = job.execution, job.execution.gpus_per_worker > 0
    storage, name = _run_folder(job).rsplit("/", 1)
    resources = {"CPU": execution.cpus_per_worker} | ({"GPU": execution.gpus_per_worker} if gpu else {})
    with ray_session():
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(num_workers=execution.workers, use_gpu=gpu, resources_per_worker=resources),
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            run_config=RunConfig(
                name=name,
                storage_path=storage,
                failure_config=FailureConfig(max_failures=execution.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        while True:
            memory = _memory(job)
            try:
                trainer.fit()
                break
            except TrainingFailedError as error:
                if _memory(job) == memory:
                    raise _last_failure(job, getattr(error, "worker_failures", {}) or {0: error}) from error
                # Ray counted running out of memory as a failure; halving ends by itself, so these come on top of max_failures.
            except ActorDiedError as error:
                if "CheckpointManagerInitializationError" not in str(error):
                    raise
                cause = str(error).strip().splitlines()[-1].rpartition("Error: ")[2]
                context.warn(f"Ray Train's record of its checkpoints in {storage}/{name} was discarded: {cause}")
                filesystem, path = pafs.FileSystem.from_uri(f"{storage}/{name}/{RECORD}")
                filesystem.delete_file(path)  # the checkpoints themselves are found without it
    trained_folder(context.store, job.stage, job.digest)
    return context.store.read_json(f"{job.stage}/{job.digest}/scratch/report.json")


def _last_failure(job: TrainingJob, failures: dict[int, Exception]) -> DoraError:
    """Why a run that Ray Train gave up failed the last time: a worker's own words if it had any, else which rank died."""
    folder = Store(job.store_uri).folder(job.stage, job.digest).path
    for failure in failures.values():
        if isinstance(failure, DoraError):
            return failure
        if (full := full_disk(failure, folder)) is not None:
            return full
    causes = {rank: getattr(failure, "health_check_failure", failure) for rank, failure in failures.items()}
    lines = [f"rank {rank}: {type(cause).__name__}: {str(cause).strip().splitlines()[0]}" for rank, cause in causes.items()]
    return TrainingError(
        f"{job.stage} failed more than {job.execution.max_failures} times, at last because of {'; '.join(lines)}",
        hint=f"run again: training goes on from its last checkpoint. A worker that dies without a word was usually out of the machine's "
        f"memory (lower execution.{job.stage}.workers) or on a lost node (raise execution.{job.stage}.max_failures)",
    )


def _run_folder(job: TrainingJob) -> str:
    """Path or URI of what Ray Train keeps for this run."""
    return f"{Store(job.store_uri).uri}/{job.stage}/{job.digest}/scratch/{job.stage}-{job.digest}"


def _ray_worker(config: dict[str, Any]) -> None:
    """Body of one Ray Train worker."""
    import ray.train
    import ray.train.torch
    import torch

    from dora_core.distributed import Worker

    job: TrainingJob = config["job"]
    torch.set_num_threads(max(1, int(job.execution.cpus_per_worker)))  # Ray sets OMP_NUM_THREADS, which torch reads too late
    worker = Worker.current(ray.train.torch.get_device())
    folder = Store(job.store_uri).folder(job.stage, job.digest)
    journal = JournalWriter(folder)
    local = folder.path / "scratch" / f"rank-{worker.rank}"  # not in /tmp, where nobody would look for what a killed rank leaves
    try:
        report = _train(job, worker, _RayHooks(_run_folder(job), local, journal, worker))
    finally:
        journal.flush()
    if worker.rank == 0:
        folder.write_json("scratch/report.json", report)


class _RayHooks:
    """Checkpoints through ``ray.train.report``, which uploads them and deletes old ones.

    Which there are is read from the storage: Ray's own record of them is not written atomically, and once torn would hide them all.
    """

    def __init__(self, run: str, local: Path, journal: JournalWriter, worker: Worker):
        self._run, self._local, self._journal, self._worker = run, local, journal, worker

    def checkpoints(self) -> Iterator[Path]:
        """Those whose last file is there; Ray names them by the time. Every rank sees what rank 0 sees."""
        from ray.train import Checkpoint

        from dora_core.checkpoints import PROGRESS

        filesystem, root = pafs.FileSystem.from_uri(self._run)
        files = filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=True))
        found = sorted((str(Path(file.path).parent) for file in files if file.base_name == PROGRESS), reverse=True)
        for path in self._worker.gather(found)[0]:
            with Checkpoint(path, filesystem).as_directory() as folder:
                yield Path(folder)

    def save(self, folder_writer: Callable[[Path], None], step: int) -> None:
        import ray.train

        shutil.rmtree(self._local, ignore_errors=True)
        self._local.mkdir(parents=True)
        folder_writer(self._local)
        ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(str(self._local)))
        shutil.rmtree(self._local)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._journal.metrics(step, metrics)

    def progress(self, done: int, total: int) -> None:
        self._journal.progress(done, total, "steps")


# ------------------------------------------------------------------------------------------------------------ both ways


def _train(job: TrainingJob, worker: Worker, hooks: Any) -> dict[str, Any]:
    from dora_core.distributed import full_weights
    from dora_core.models import save_model
    from dora_core.training import OutOfMemory, Schedule, fit

    memory = _memory(job)
    execution = job.execution.model_copy(update={"micro_batch_tokens": memory["micro_batch_tokens"]})
    start = load(job, worker)
    task = job.build(start, worker, **job.arguments)
    try:
        report = fit(task, job.optimization, execution, worker, hooks, run=job.digest)
    except OutOfMemory as error:
        _remember(job, memory["warnings"], error)
        raise
    weights = full_weights(task.module)
    if worker.rank == 0:
        folder = Store(job.store_uri).folder(job.stage, job.digest)
        shutil.rmtree(folder.path / "model", ignore_errors=True)  # half of one, from an attempt that was killed here
        save_model(trained_model(job, weights), start.tokenizer, folder.path / "model")
        for file in (folder.path / "model").iterdir():
            folder.commit(f"model/{file.name}")
    return {
        "steps": report.steps,
        "planned_steps": Schedule(len(task.tokens), job.optimization).steps,
        "resumed_from": report.resumed_from,
        "curve": report.curve,
        "records": len(task.tokens),
        "warnings": [*memory["warnings"], *report.warnings, *job.kind.warnings(start.module)],
    }


def _memory(job: TrainingJob) -> dict[str, Any]:
    """What running out of memory has taught: how many tokens a micro-batch may have, and the warnings that say so."""
    memory = Store(job.store_uri).read_json(f"{job.stage}/{job.digest}/{MEMORY}") or {"warnings": []}
    configured = job.execution.micro_batch_tokens
    return memory | {"micro_batch_tokens": min(configured, memory.get("micro_batch_tokens", configured))}


def _remember(job: TrainingJob, warnings: list[str], error: OutOfMemory) -> None:
    """Ranks that run out of memory in the same step may all do this; one of them has the last word."""
    warning = (
        f"{error.message}: training went on from the last checkpoint with at most {error.budget} tokens, which changes the weights by "
        f"rounding only; set execution.{job.stage}.micro_batch_tokens to {error.budget} to save the attempt"
    )
    log.warning(warning)
    memory = {"micro_batch_tokens": error.budget, "warnings": [*warnings, warning]}
    Store(job.store_uri).folder(job.stage, job.digest).write_json(MEMORY, memory)


def load(job: TrainingJob, worker: Worker) -> Start:
    """The starting weights with adapters and gradient checkpointing as configured; the same on every rank."""
    import torch

    torch.manual_seed(job.optimization.seed)  # new heads and adapters must agree between ranks
    model, tokenizer = job.kind.load(local_model(job.model, job.store_uri))
    layers = decoder_layers(model)
    if job.execution.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Start(job.kind.wrap(_adapted(job, model), job.execution), tokenizer, layers)


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The repeated blocks: the longest ``ModuleList`` of the model."""
    from torch import nn

    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=len)) if lists else []


def trained_model(job: TrainingJob, weights: dict[str, Any]) -> PreTrainedModel:
    """An unsharded model with the trained weights, adapters merged, in the precision it was trained in."""
    import torch

    from dora_core.models import merge_lora

    model, _ = job.kind.load(local_model(job.model, job.store_uri))
    model = _adapted(job, model)
    # Names carry the prefix of the wrapping module; tied weights appear once, and loading the one fills the other.
    missing, unexpected = model.load_state_dict({k.removeprefix("model."): v for k, v in weights.items()}, strict=False)
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - {name for name, _ in model.named_parameters()}
    assert not unexpected and not set(missing) - tied, f"missing {missing}, unexpected {unexpected}"
    return merge_lora(model).to(getattr(torch, job.optimization.precision))


def _adapted(job: TrainingJob, model: PreTrainedModel) -> PreTrainedModel:
    from dora_core.models import add_lora

    return model if job.optimization.lora is None else add_lora(model, job.optimization.lora, job.kind.lora_task)
