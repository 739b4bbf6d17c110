"""Two gloo ranks that read, train and save tiny models by shards; run once, by ``mp.spawn``, for all tests of sharding."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import PreTrainedTokenizerFast

from dora_core.config.execution import Execution
from dora_core.config.method import LoraConfig, ModelConfig, OptimizationConfig
from dora_core.models.adapters import add_lora
from dora_core.models.loading import train_tokenizer
from dora_core.models.logprobs import ResponseLogps
from dora_core.models.sharded_loading import Share, load_sharded, model_class, read_config
from dora_core.training.activations import checkpoint_layers
from dora_core.training.distributed import Sharding, Worker
from dora_core.training.loop import FolderHooks, fit
from dora_core.training.sharded_saving import save_sharded
from dora_core.training.sharding import shard
from tests.dora_core.models.small_models import NAMES
from tests.dora_core.training.alignment_tasks import RECORDS, make_data, make_task

STEPS = 4
CONFIG = OptimizationConfig(epochs=STEPS, batch_size=3, learning_rate=1e-3)
LORA = LoraConfig(rank=4, alpha=8)
IDS = torch.arange(1, 13)[None]
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
    config = ModelConfig(source=str(folder))
    settled = read_config(config)
    activation_offload = settings.pop("activation_offload", False)
    sharding = Sharding(worker, **settings)
    share = Share(sharding.rank, sharding.shards)
    kind = model_class(transformers.AutoModelForCausalLM, settled)
    start = load_sharded(kind, settled, config, share, torch.float32, sharding.held_on)
    layers = max((list(m) for m in start.model.modules() if isinstance(m, nn.ModuleList)), key=len)
    if activation_offload:
        checkpoint_layers(start.model, worker.device, offload=True)
    torch.manual_seed(1)
    module = Module(start.model if lora is None else add_lora(start.model, lora))
    shard(module, layers, start.rows, share, sharding)
    return module, layers


def train(folder: Path, checkpoints: Path, worker: Worker, **way: Any) -> tuple[Any, Module]:
    """Align for four steps; leaves the checkpoint of step 2: call again to resume."""
    module, layers = read(folder, worker, **way)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    task = make_task(plain, tokenizer(), make_data(plain, tokenizer()), worker, Execution(strategy="fsdp"))
    task.module, task.layers = module, layers
    execution = Execution(strategy="fsdp", micro_batch_size=1, checkpoint_every=2)
    return fit(task, CONFIG, execution, worker, FolderHooks(checkpoints), run="mine"), module


def rank_main(rank: int, root: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    folder = Path(root)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    worker = Worker.current()
    for name in NAMES:
        module, _ = read(folder / name, worker)
        with torch.no_grad():
            register_fsdp_forward_method(module, "logits")
            torch.save(module.logits(IDS), folder / f"{name}-{rank}.pt")
        save_sharded(module, module.model, folder / f"{name}-saved", torch.float32, worker)
    for way, settings in WAYS.items():
        _, module = train(folder / "start", folder / f"{way}-checkpoints", worker, **settings)
        model = module.plain_model
        save_sharded(module, model, folder / f"{way}-trained", torch.float32, worker)
    resumed, module = train(folder / "start", folder / "alone-checkpoints", worker)
    save_sharded(module, module.plain_model, folder / "resumed-trained", torch.float32, worker)
    torch.save(resumed.resumed_from, folder / f"resumed-{rank}.pt")
    torch.distributed.destroy_process_group()
