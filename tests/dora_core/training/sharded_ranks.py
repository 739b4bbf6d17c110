"""Two gloo ranks that read, train and save tiny models by shards; run once, by ``mp.spawn``, for all tests of sharding."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

from dora_core.config.execution import Execution
from dora_core.config.method import LoraConfig, ModelConfig, OptimizationConfig
from dora_core.models.adapters import add_lora
from dora_core.models.loading import train_tokenizer
from dora_core.models.logprobs import ResponseLogps
from dora_core.models.sharded_loading import Share, TensorShare, build_on_meta, load_sharded, model_class, read_config
from dora_core.models.tensor_plan import tensor_plan
from dora_core.training.activations import checkpoint_layers
from dora_core.training.distributed import Sharding, Worker
from dora_core.training.loop import FolderHooks, fit
from dora_core.training.sharded_saving import save_sharded
from dora_core.training.sharding import TensorSplit, shard
from tests.dora_core.models.packed_records import RECORDS as PACKED
from tests.dora_core.models.small_models import NAMES, WIDTHS
from tests.dora_core.training.alignment_tasks import RECORDS, make_data, make_task

STEPS = 4
CONFIG = OptimizationConfig(epochs=STEPS, batch_size=3, learning_rate=1e-3)
LORA = LoraConfig(rank=4, alpha=8)
IDS = torch.arange(1, 13)[None]
TENSOR_NAMES = ("llama", "tied")
TENSOR_MODELS: dict[str, Any] = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {}),
    "tied": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config, {"head_dim": 8}),
    "gemma2": (transformers.Gemma2ForCausalLM, transformers.Gemma2Config, {"head_dim": 8}),
    "phi3": (transformers.Phi3ForCausalLM, transformers.Phi3Config, {"eos_token_id": 0}),
}
WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "lora": {"lora": LORA},
    "cpu_offload": {"cpu_offload": True},
    "replicas": {"replicas": 2},
    "activation_offload": {"activation_offload": True},
}


def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([w for r in RECORDS for w in (r["prompt"], *r["responses"])] * 3, 300)


def training_model(folder: Path) -> Path:
    """A Llama with an untied head, for training; dimensions that two ranks divide unevenly."""
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer()) + 1, hidden_size=24, intermediate_size=37, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def tensor_training_model(folder: Path) -> Path:
    """A Qwen3, whose attention has weights that every rank holds and each trains for its own heads; an odd vocabulary."""
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer()) + 1, hidden_size=24, intermediate_size=38, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, max_position_embeddings=64, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def tensor_model(name: str) -> PreTrainedModel:
    """A float64 model with weights that let attention vary."""
    kind, configuration, settings = TENSOR_MODELS[name]
    torch.manual_seed(0)
    model: PreTrainedModel = kind(configuration(**WIDTHS, **settings)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
    return model


def values_and_gradients(model: PreTrainedModel, records: list[Any], *, packed: bool) -> dict[str, torch.Tensor]:
    """Σ log π of the responses, and the gradient of Σ_r (1 + r) log π_r by every weight."""
    logps = ResponseLogps(model)
    logps._packs = packed
    values_R = logps(logps.collate(records, 0))
    (torch.arange(1, len(values_R) + 1) * values_R).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    whole = {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in gradients.items()}
    return {"values": values_R.detach()} | whole


class Module(ResponseLogps):
    """The module of training, whose decision for padded rows is given, and which also gives logits."""

    """With padded rows, so that :meth:`logits` can give the model plain ids."""

    def __init__(self, model: Any):
        super().__init__(model)
        self.plain_model.set_attn_implementation("sdpa")
        self._packs = False

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.plain_model(ids).logits
        return found


def read(folder: Path, worker: Worker, lora: LoraConfig | None = None, **settings: Any) -> tuple[Module, list[nn.Module]]:
    """The module as a training worker makes it."""
    worker = worker.split(settings.pop("tensor_parallel", 1))
    config = ModelConfig(source=str(folder))
    settled = read_config(config)
    activation_offload = settings.pop("activation_offload", False)
    sharding = Sharding(worker, **settings)
    share, plan = Share(sharding.rank, sharding.shards), None
    kind = model_class(transformers.AutoModelForCausalLM, settled)
    if worker.tensor_mesh is not None:
        plan = tensor_plan(build_on_meta(kind, settled, torch.float32), worker.tensor_parallel)
        tensor = TensorShare(worker.tensor_mesh["tensor"].get_local_rank(), worker.tensor_parallel, plan.dimensions)
        share = dataclasses.replace(share, tensor=tensor)
    start = load_sharded(kind, settled, config, share, torch.float32, sharding.held_on)
    layers = max((list(m) for m in start.model.modules() if isinstance(m, nn.ModuleList)), key=len)
    if activation_offload:
        checkpoint_layers(start.model, worker.device, offload=True)
    torch.manual_seed(1)
    module = Module(start.model if lora is None else add_lora(start.model, lora))
    shard(module, layers, start.rows, share, sharding, None if plan is None else TensorSplit(start.model, plan))
    return module, layers


def train(folder: Path, checkpoints: Path, worker: Worker, **way: Any) -> tuple[Any, Module]:
    """Align for four steps; leaves the checkpoint of step 2: call again to resume."""
    module, layers = read(folder, worker, **way)
    worker = worker.split(way.get("tensor_parallel", 1))
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    task = make_task(plain, tokenizer(), make_data(plain, tokenizer()), worker.data, Execution(strategy="fsdp"))
    task.module, task.layers = module, layers
    execution = Execution(strategy="fsdp", micro_batch_size=1, checkpoint_every=2)
    return fit(task, CONFIG, execution, worker, FolderHooks(checkpoints), run="mine"), module


def _tensor_groups(folder: Path, worker: Worker) -> None:
    """Values and gradients of models that the two ranks split; a training of four steps, and its end again from a checkpoint."""
    mesh = worker.split(2).tensor_mesh
    assert mesh is not None
    for name in TENSOR_MODELS:
        for packed in (True, False):
            model = tensor_model(name)
            apply_tensor_parallelism(model, mesh["tensor"], tensor_plan(model, 2).styles)
            torch.save(values_and_gradients(model, PACKED, packed=packed), folder / f"{name}-{packed}-{worker.rank}.pt")
    for name in ("tensor", "tensor-resumed"):
        report, module = train(folder / "tensor-start", folder / "tensor-checkpoints", worker, tensor_parallel=2)
        save_sharded(module, module.plain_model, folder / f"{name}-trained", torch.float32, worker)
        torch.save(report.resumed_from, folder / f"{name}-{worker.rank}.pt")


def rank_main(worker: Worker, root: str) -> None:
    folder = Path(root)
    for name in NAMES:
        module, _ = read(folder / name, worker)
        with torch.no_grad():
            register_fsdp_forward_method(module, "logits")
            torch.save(module.logits(IDS), folder / f"{name}-{worker.rank}.pt")
        save_sharded(module, module.model, folder / f"{name}-saved", torch.float32, worker)
    for name in TENSOR_NAMES:
        module, _ = read(folder / name, worker, tensor_parallel=2)
        save_sharded(module, module.model, folder / f"{name}-tensor-saved", torch.float32, worker)
    _tensor_groups(folder, worker)
    for way, settings in WAYS.items():
        _, module = train(folder / "start", folder / f"{way}-checkpoints", worker, **settings)
        model = module.plain_model
        save_sharded(module, model, folder / f"{way}-trained", torch.float32, worker)
    resumed, module = train(folder / "start", folder / "alone-checkpoints", worker)
    save_sharded(module, module.plain_model, folder / "resumed-trained", torch.float32, worker)
    torch.save(resumed.resumed_from, folder / f"resumed-{worker.rank}.pt")
