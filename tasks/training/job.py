"""Work of every training worker, alone or on Ray Train: make the model and the task from plain arguments, train, save.

A :class:`TrainingJob` holds paths and specs, never tensors. The trained model ends in ``<stage folder>/model``; the job's ``kind`` is
the kind of model.

After an out-of-memory error in a step, training continues from the last checkpoint with half as many tokens in a micro-batch, which changes
the weights by rounding only. A file in the stage's scratch folder keeps that budget for the other ranks and the next attempt.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dora_core.config.execution import Execution
from dora_core.config.method import ModelConfig, OptimizationConfig
from dora_core.errors import ModelError
from dora_core.strict_model import StrictModel
from infra.store.store import Store
from tasks.runtime.memory import peak_memory
from tasks.runtime.spec import ModelSource, local_model
from tasks.training.report import TrainingReport

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dora_core.models.logprobs import ResponseLogps
    from dora_core.training.distributed import Worker
    from dora_core.training.loop import Hooks, OutOfMemory, Task
    from dora_core.training.reward_model import RewardModel

MEMORY = "scratch/memory.json"
REPORT = "scratch/report.json"
"""Written by rank 0 of a training on Ray."""
log = logging.getLogger("dora.training")


class CausalLM:
    """A kind of model: a language model, trained through the log-probabilities of responses.

    Every kind has these functions and peft's name for it. ``wrap`` makes the module that is trained, with the model as its
    attribute ``model``; ``warnings`` are about the wrapped module, for users. ``sharded`` is what ``load`` does, for a model that is read
    by shards: the class of transformers that chooses the model, changes to its configuration, and the tokenizer.
    """

    lora_task = "CAUSAL_LM"

    @staticmethod
    def load(source: ModelConfig | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from dora_core.models.loading import load_policy

        return load_policy(source)

    @staticmethod
    def sharded(source: ModelConfig) -> tuple[Any, dict[str, Any], PreTrainedTokenizerBase]:
        import transformers

        from dora_core.models.loading import load_policy_tokenizer

        return transformers.AutoModelForCausalLM, {}, load_policy_tokenizer(source)

    @staticmethod
    def wrap(model: PreTrainedModel, execution: Execution, device: torch.device) -> ResponseLogps:
        from dora_core.models.logprobs import ResponseLogps

        return ResponseLogps(model, share_prefix=execution.prefix_sharing, device=device)

    @staticmethod
    def warnings(module: ResponseLogps) -> list[str]:
        from dora_core.models.adapters import coverage

        reason = module.unpacked_because
        found = [f"prompts were computed once per response, not once per record: {reason}"] if reason else []
        if hasattr(module.model, "peft_config") and (note := coverage(module.model).note()):
            found.append(note)
        return found


class ScalarHead:
    """A kind of model (see :class:`CausalLM`): any trunk under one output, trained through the rewards of responses."""

    lora_task = "SEQ_CLS"

    @staticmethod
    def load(source: ModelConfig | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from dora_core.models.loading import grow_reward_model

        return grow_reward_model(source)

    @staticmethod
    def sharded(source: ModelConfig) -> tuple[Any, dict[str, Any], PreTrainedTokenizerBase]:
        import transformers

        from dora_core.models.loading import reward_model_settings

        return transformers.AutoModelForSequenceClassification, *reward_model_settings(source)

    @staticmethod
    def wrap(model: PreTrainedModel, execution: Execution, device: torch.device) -> RewardModel:
        from dora_core.training.reward_model import RewardModel

        return RewardModel(model)

    @staticmethod
    def warnings(module: RewardModel) -> list[str]:
        return []


@dataclass(frozen=True)
class TrainingJob:
    """Description of one training, as plain data.

    Attributes:
        build: importable function (start, worker, **arguments) → task.
        arguments: keyword arguments of ``build``.
        model: the starting weights, by name or as the stage that trained them.
        kind: kind of model that is trained from them.
        until: pause after this many steps, see :func:`dora_core.training.loop.fit`; None: train to the end.
    """

    build: Callable[..., Task]
    arguments: dict[str, Any]
    model: ModelSource
    optimization: OptimizationConfig
    execution: Execution
    store_uri: str
    stage: str
    digest: str
    kind: type[CausalLM | ScalarHead] = CausalLM
    until: int | None = None


@dataclass
class Start:
    """The starting weights on a worker, ready to be made into a task: ``module`` is the model as its kind wraps it, sharded if it was
    read by shards; ``notes`` are for users."""

    module: Any
    tokenizer: PreTrainedTokenizerBase
    layers: list[nn.Module]
    notes: list[str] = field(default_factory=list)


def trained_folder(store: Store, stage: str, digest: str) -> Path:
    """Folder on this machine with the trained model of a stage that may have no result yet."""
    report = store.read_json(f"{stage}/{digest}/{REPORT}") or {}
    listed = {f"model/{name}" for name in store.list(f"{stage}/{digest}/model")}
    for name in sorted({*report.get("files", ()), *listed}):
        if name in listed or store.has(f"{stage}/{digest}/{name}"):  # a listing may lag behind
            store.download(f"{stage}/{digest}/{name}")
    return store.local_root / stage / digest / "model"


def train(job: TrainingJob, worker: Worker, hooks: Hooks) -> TrainingReport:
    """Train from the last checkpoint to the saved model. Called on every worker."""
    from dora_core.training.device_memory import explain_out_of_memory
    from dora_core.training.loop import OutOfMemory, Schedule, fit

    worker = worker.split(job.execution.tensor_parallel)
    memory = Memory.of(job)
    execution = job.execution.model_copy(update={"micro_batch_tokens": memory.micro_batch_tokens})
    start = load(job, worker)
    task = _balanced(job.build(start, worker.data, **job.arguments), job, start, worker.data)
    try:
        report = fit(task, job.optimization, execution, worker, hooks, run=job.digest, until=job.until)
    except OutOfMemory as error:
        memory.lower(job, error)
        raise
    folder = Store(job.store_uri).folder(job.stage, job.digest)
    if worker.rank == 0:
        for name in ("model", "adapter"):
            shutil.rmtree(folder.path / name, ignore_errors=True)  # half of one, from an attempt that was killed here
    with explain_out_of_memory("the trained weights were gathered", task.module, execution.strategy, worker):
        _save(job, task.module, start, folder.path, worker)
    files: list[str] = []
    if worker.rank == 0:
        files = [f"{name}/{file.name}" for name in ("model", "adapter") for file in sorted((folder.path / name).glob("*"))]
        for name in files:
            folder.commit(name)
    planned = Schedule(len(task.tokens), job.optimization).steps
    return TrainingReport(
        steps=report.steps,
        planned_steps=planned if job.until is None else min(job.until, planned),
        resumed_from=report.resumed_from,
        curve=report.curve,
        records=len(task.tokens),
        warnings=[*memory.warnings, *start.notes, *report.warnings, *job.kind.warnings(start.module)],
        files=files,
        memory=peak_memory(),
    )


def _balanced(task: Task, job: TrainingJob, start: Start, worker: Worker) -> Task:
    """The task, with the load of a mixture's experts balanced if the configuration says so."""
    if not job.optimization.router_balance:
        return task
    from dora_core.models.logprobs import ResponseLogps
    from dora_core.models.routers import Routers
    from dora_core.training.router_balance import BalancedTask, BatchedTask

    if not isinstance(start.module, ResponseLogps) or not isinstance(task, BatchedTask):
        raise ModelError(
            "optimization.router_balance: a reward model's experts are not balanced",
            hint="set optimization.router_balance of the reward model to 0",
        )
    return BalancedTask(task, Routers(start.module.plain_model), job.optimization.router_balance, worker)


class Memory(StrictModel):
    """Budget of a micro-batch, as learned by running out of memory; kept in the stage's scratch folder."""

    micro_batch_tokens: int
    warnings: list[str] = Field(default_factory=list)

    @classmethod
    def of(cls, job: TrainingJob) -> Memory:
        """The smaller of the configured budget and the learned one."""
        stored = Store(job.store_uri).read_json(f"{job.stage}/{job.digest}/{MEMORY}")
        configured = job.execution.micro_batch_tokens
        if stored is None:
            return cls(micro_batch_tokens=configured)
        learned = cls.model_validate(stored)
        return learned.model_copy(update={"micro_batch_tokens": min(configured, learned.micro_batch_tokens)})

    def lower(self, job: TrainingJob, error: OutOfMemory) -> None:
        """Store a smaller budget. Ranks that run out of memory in the same step may all do this; the last write counts."""
        warning = (
            f"{error.message}: training continued from the last checkpoint with at most {error.budget} tokens, which changes the weights "
            f"by rounding only; set execution.{job.stage}.micro_batch_tokens to {error.budget} to save the attempt"
        )
        log.warning(warning)
        lowered = Memory(micro_batch_tokens=error.budget, warnings=[*self.warnings, warning])
        Store(job.store_uri).folder(job.stage, job.digest).write_json(MEMORY, lowered.model_dump())


def load(job: TrainingJob, worker: Worker) -> Start:
    """The starting weights with adapters and gradient checkpointing as configured; the same on every rank.

    With strategy fsdp each rank reads its shard; a model that cannot be read so is read whole by every rank, which a note says.
    """
    import torch

    from dora_core.models.sharded_loading import CannotShard

    _refuse_adapters(job, worker)
    _refuse_tensor_groups(job)
    notes: list[str] = []
    source = local_model(job.model, job.store_uri)
    if job.execution.strategy == "fsdp" and worker.group is not None:
        try:
            return _load_shards(job, source, worker)
        except CannotShard as reason:
            if job.execution.tensor_parallel > 1:
                raise ModelError(
                    f"tensor_parallel={job.execution.tensor_parallel}: the model cannot be read by shards: {reason.message}",
                    hint="set execution's tensor_parallel to 1",
                ) from reason
            notes.append(f"every worker read the whole model, not its shard alone: {reason.message}")
            log.warning(notes[0])
    torch.manual_seed(job.optimization.seed)  # new heads and adapters must agree between ranks
    model, tokenizer = job.kind.load(source)
    layers = decoder_layers(model)
    _checkpoint_layers(job, model, worker)
    return Start(job.kind.wrap(_adapted(job, model), job.execution, worker.device), tokenizer, layers, notes)


def _refuse_adapters(job: TrainingJob, worker: Worker) -> None:
    """Raise ModelError for adapters that this training could not save."""
    lora = job.optimization.lora
    if lora is None:
        return
    if lora.result == "adapter" and not isinstance(job.model, ModelConfig):
        raise ModelError(
            "optimization.lora.result=adapter needs a base with a name, and this training starts from the model of an earlier stage",
            hint="set optimization.lora.result to merged, or start from a named model",
        )
    asked = {
        "weight_decomposed": lora.weight_decomposed,
        "target_parameters": bool(lora.target_parameters),
        "modules_to_save": bool(lora.modules_to_save),
        "result=adapter": lora.result == "adapter",
    }
    if job.execution.strategy == "fsdp" and worker.group is not None and (wanted := [name for name, is_asked in asked.items() if is_asked]):
        raise ModelError(
            f"optimization.lora.{wanted[0]} does not work on a sharded model",
            hint="set the stage's execution to strategy: ddp, or take the option out of optimization.lora",
        )


def _refuse_tensor_groups(job: TrainingJob) -> None:
    """Raise ModelError for trainings that ``tensor_parallel`` would compute wrongly, or that nothing tests with it."""
    from dora_core.models.tensor_plan import refuse_with_tensor_groups

    ranks = job.execution.tensor_parallel
    refuse_with_tensor_groups(job.optimization, ranks, job.stage)
    if ranks > 1 and job.kind is not CausalLM:
        raise ModelError(
            f"execution.{job.stage}.tensor_parallel={ranks}: a reward model is not split",
            hint="set it to 1: strategy fsdp shards the model without it",
        )


def _load_shards(job: TrainingJob, source: ModelConfig | Path, worker: Worker) -> Start:
    import torch

    from dora_core.models.model_settings import remember, settle
    from dora_core.models.sharded_loading import (
        Share,
        TensorShare,
        build_on_meta,
        load_sharded,
        model_class,
        read_config,
        stored_dtypes,
    )
    from dora_core.models.tensor_plan import tensor_plan
    from dora_core.models.twin import twin
    from dora_core.training.distributed import Sharding
    from dora_core.training.sharding import TensorSplit, shard

    config = source if isinstance(source, ModelConfig) else ModelConfig(source=str(source))
    bfloat16 = job.optimization.precision == "bfloat16"
    sharding = Sharding(worker, bfloat16, job.execution.replicas, job.execution.cpu_offload)
    share, plan = Share(sharding.rank, sharding.shards), None
    auto, settings, tokenizer = job.kind.sharded(config)
    settled = read_config(config, **settings)
    origin = settle(settled, config.source)
    kind = model_class(auto, settled)
    like = twin(kind, settled)
    module: Any = job.kind.wrap(like, job.execution, worker.device)  # decides on the twin how records are computed
    module.model = None  # the twin is freed before weights are read
    if worker.tensor_mesh is not None:
        plan = tensor_plan(build_on_meta(kind, settled, torch.float32), worker.tensor_parallel)
        tensor = TensorShare(worker.tensor_mesh["tensor"].get_local_rank(), worker.tensor_parallel, plan.dimensions)
        share = dataclasses.replace(share, tensor=tensor)
    # Frozen weights are computed with in bfloat16: files of that dtype need no float32 copy.
    frozen = bfloat16 and job.optimization.lora is not None and stored_dtypes(config) == {"BF16"}
    torch.manual_seed(job.optimization.seed)  # new heads and adapters must agree between ranks
    start = load_sharded(kind, settled, config, share, torch.bfloat16 if frozen else torch.float32, sharding.held_on)
    remember(start.model, origin)
    start.model.set_attn_implementation(like.config._attn_implementation)
    layers = decoder_layers(start.model)
    _checkpoint_layers(job, start.model, worker)
    module.model = _adapted(job, start.model)
    split = None if plan is None else TensorSplit(start.model, plan)
    return Start(shard(module, layers, start.rows, share, sharding, split), tokenizer, layers)


def _checkpoint_layers(job: TrainingJob, model: PreTrainedModel, worker: Worker) -> None:
    from dora_core.training.activations import checkpoint_layers

    if job.execution.gradient_checkpointing:
        checkpoint_layers(model, worker.device, offload=job.execution.activation_offload)


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The repeated blocks: the longest ``ModuleList`` of the model, of a multimodal one that of its text decoder."""
    from torch import nn
    from transformers import PreTrainedModel

    from dora_core.models.parts import text_body

    body = text_body(model) if isinstance(model, PreTrainedModel) else model
    lists = [list(m) for m in body.modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len, default=[])


def _save(job: TrainingJob, module: nn.Module, start: Start, folder: Path, worker: Worker) -> None:
    """Write ``model/``, adapters merged, and ``adapter/`` where it is asked for. A sharded model never becomes whole on any rank."""
    from torch.distributed.fsdp import FSDPModule

    from dora_core.models.loading import declare_ends, finish_folder
    from dora_core.models.model_settings import as_it_was
    from dora_core.training.distributed import full_weights
    from dora_core.training.sharded_saving import save_sharded

    if isinstance(module, FSDPModule):
        model = start.module.model
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        declare_ends(plain, start.tokenizer)
        with as_it_was(plain):
            save_sharded(module, plain, folder / "model", saved_dtype(job, plain), worker)
        if worker.rank == 0:
            finish_folder(start.tokenizer, folder / "model")
        return
    weights = full_weights(module)
    if worker.rank == 0:
        save_trained(job, weights, start.tokenizer, folder)


def trained_model(job: TrainingJob, weights: dict[str, Tensor]) -> PreTrainedModel:
    """An unsharded model with the trained weights and its adapters, in float32."""
    model, _ = job.kind.load(local_model(job.model, job.store_uri))
    model = _adapted(job, model)
    # Names carry the prefix of the wrapping module; tied weights appear once, and loading the one fills the other.
    missing, unexpected = model.load_state_dict({k.removeprefix("model."): v for k, v in weights.items()}, strict=False)
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - {name for name, _ in model.named_parameters()}
    assert not unexpected and not set(missing) - tied, f"missing {missing}, unexpected {unexpected}"
    return model


def saved_dtype(job: TrainingJob, model: PreTrainedModel) -> torch.dtype:
    """Type of the saved weights: bfloat16 if that is the precision of training, else that of the weights it started from."""
    import torch

    from dora_core.models.model_settings import origin_of

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return torch.bfloat16 if job.optimization.precision == "bfloat16" else origin_of(plain).dtype


def save_trained(job: TrainingJob, weights: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write ``model/``, adapters merged, and ``adapter/`` where it is asked for, below ``folder``."""
    from dora_core.models.adapters import merge_lora, save_adapter
    from dora_core.models.loading import save_model

    model, lora = trained_model(job, weights), job.optimization.lora
    dtype = saved_dtype(job, model)
    if lora is not None and lora.result == "adapter" and isinstance(job.model, ModelConfig):
        save_adapter(model, folder / "adapter", job.model.source, job.model.revision)
        tokenizer.save_pretrained(folder / "adapter")
    save_model(merge_lora(model).to(dtype), tokenizer, folder / "model")


def _adapted(job: TrainingJob, model: PreTrainedModel) -> PreTrainedModel:
    from dora_core.models.adapters import add_lora

    return model if job.optimization.lora is None else add_lora(model, job.optimization.lora, job.kind.lora_task)
