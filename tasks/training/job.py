"""Work of every training worker, alone or on Ray Train: make the model and the task from plain arguments, train, save.

A :class:`TrainingJob` holds paths and specs, never tensors. The trained model ends in ``<stage folder>/model``; the job's ``kind`` is
the kind of model.

After an out-of-memory error in a step, training continues from the last checkpoint with half as many tokens in a micro-batch, which changes
the weights by rounding only. A file in the stage's scratch folder keeps that budget for the other ranks and the next attempt.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dora_core.config.execution import Execution
from dora_core.config.method import ModelConfig, OptimizationConfig
from dora_core.errors import ModelError
from dora_core.strict_model import StrictModel
from infra.store.store import StageFolder, Store
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
log = logging.getLogger("dora.training")


class CausalLM:
    """A kind of model: a language model, trained through the log-probabilities of responses.

    Every kind has these three functions and peft's name for it. ``wrap`` makes the module that is trained, with the model as its
    attribute ``model``; ``warnings`` are about the wrapped module, for users.
    """

    lora_task = "CAUSAL_LM"

    @staticmethod
    def load(source: ModelConfig | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from dora_core.models.loading import load_policy

        return load_policy(source)

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


@dataclass
class Start:
    """The starting weights on a worker, ready to be made into a task: ``module`` is the model as its kind wraps it."""

    module: Any
    tokenizer: PreTrainedTokenizerBase
    layers: list[nn.Module]


def trained_folder(store: Store, stage: str, digest: str) -> Path:
    """Folder on this machine with the trained model of a stage that may have no result yet."""
    for name in store.list(f"{stage}/{digest}/model"):
        store.download(f"{stage}/{digest}/model/{name}")
    return store.local_root / stage / digest / "model"


def train(job: TrainingJob, worker: Worker, hooks: Hooks) -> TrainingReport:
    """Train from the last checkpoint to the saved model. Called on every worker."""
    from dora_core.training.device_memory import explain_out_of_memory
    from dora_core.training.distributed import full_weights
    from dora_core.training.loop import OutOfMemory, Schedule, fit

    memory = Memory.of(job)
    execution = job.execution.model_copy(update={"micro_batch_tokens": memory.micro_batch_tokens})
    start = load(job, worker)
    task = job.build(start, worker, **job.arguments)
    try:
        report = fit(task, job.optimization, execution, worker, hooks, run=job.digest)
    except OutOfMemory as error:
        memory.lower(job, error)
        raise
    with explain_out_of_memory("the trained weights were gathered", task.module, execution.strategy, worker):
        weights = full_weights(task.module)
    if worker.rank == 0:
        save_trained(job, weights, start.tokenizer, Store(job.store_uri).folder(job.stage, job.digest))
    return TrainingReport(
        steps=report.steps,
        planned_steps=Schedule(len(task.tokens), job.optimization).steps,
        resumed_from=report.resumed_from,
        curve=report.curve,
        records=len(task.tokens),
        warnings=[*memory.warnings, *report.warnings, *job.kind.warnings(start.module)],
    )


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
    """The starting weights with adapters and gradient checkpointing as configured; the same on every rank."""
    import torch

    lora = job.optimization.lora
    if lora is not None and lora.result == "adapter" and not isinstance(job.model, ModelConfig):
        raise ModelError(
            "optimization.lora.result=adapter needs a base with a name, and this training starts from the model of an earlier stage",
            hint="set optimization.lora.result to merged, or start from a named model",
        )
    torch.manual_seed(job.optimization.seed)  # new heads and adapters must agree between ranks
    model, tokenizer = job.kind.load(local_model(job.model, job.store_uri))
    layers = decoder_layers(model)
    if job.execution.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Start(job.kind.wrap(_adapted(job, model), job.execution, worker.device), tokenizer, layers)


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The repeated blocks: the longest ``ModuleList`` of the model, of a multimodal one that of its text decoder."""
    from torch import nn
    from transformers import PreTrainedModel

    from dora_core.models.parts import text_body

    body = text_body(model) if isinstance(model, PreTrainedModel) else model
    lists = [list(m) for m in body.modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len, default=[])


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


def save_trained(job: TrainingJob, weights: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, folder: StageFolder) -> None:
    """Write ``model/``, adapters merged, and ``adapter/`` where it is asked for."""
    from dora_core.models.adapters import merge_lora, save_adapter
    from dora_core.models.loading import save_model

    for name in ("model", "adapter"):
        shutil.rmtree(folder.path / name, ignore_errors=True)  # half of one, from an attempt that was killed here
    model, lora = trained_model(job, weights), job.optimization.lora
    dtype = saved_dtype(job, model)
    if lora is not None and lora.result == "adapter" and isinstance(job.model, ModelConfig):
        save_adapter(model, folder.path / "adapter", job.model.source, job.model.revision)
        tokenizer.save_pretrained(folder.path / "adapter")
    save_model(merge_lora(model).to(dtype), tokenizer, folder.path / "model")
    for name in ("model", "adapter"):
        for file in sorted((folder.path / name).glob("*")):
            folder.commit(f"{name}/{file.name}")


def _adapted(job: TrainingJob, model: PreTrainedModel) -> PreTrainedModel:
    from dora_core.models.adapters import add_lora

    return model if job.optimization.lora is None else add_lora(model, job.optimization.lora, job.kind.lora_task)
