"""The arithmetic of memory, against numbers worked out by hand, and against a module's own parameters and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from dora_core.config.execution import Execution
from dora_core.config.method import LoraConfig, OptimizationConfig
from dora_core.training.memory_estimate import ModelSize, training_memory
from tests.dora_core.models.small_models import saved

LLAMA_8B = ModelSize(8_030_261_248, 218_112_000, 1_050_677_248, 32 * 81_920, 32, 4096, 128_256)
"""A layer: 4096·4096·2 + 4096·1024·2 + 3·4096·14336 + 2·4096. Its matrices' edges: 2·8192 + 2·5120 + 3·18432 = 81920."""
GPUS = {"gpus_per_worker": 1.0, "strategy": "fsdp", "gradient_checkpointing": True, "micro_batch_tokens": 8192}
BFLOAT16 = OptimizationConfig(precision="bfloat16")


def test_eight_billion_parameters_on_eight_gpus() -> None:
    found = training_memory(LLAMA_8B, BFLOAT16, Execution(workers=8, **GPUS))
    assert found.weights == pytest.approx(4.015e9, rel=1e-3) == found.gradients
    assert found.optimizer == pytest.approx(8.03e9, rel=1e-3) and found.held == pytest.approx(16.06e9, rel=1e-3)
    assert found.gathered == 2 * (2 * 218_112_000 + 1_050_677_248)
    assert found.activations == 32 * 8192 * 4096 * 2 and found.recomputed == 34 * 8192 * 4096 * 2
    assert found.logits == 4 * 2**26 + 4 * 128_256 * 4096
    assert found.device == pytest.approx(25.8e9, rel=2e-3) and found.host == 0


def test_adapters_hold_frozen_weights_as_they_are_stored() -> None:
    """Rank 64: 64 · 32 · 81920 = 167.8 million parameters of 16 bytes; 8.03 billion frozen ones of 2."""
    optimization = OptimizationConfig(precision="bfloat16", lora=LoraConfig(rank=64))
    found = training_memory(LLAMA_8B, optimization, Execution(workers=8, **GPUS))
    trained = 64 * 32 * 81_920
    assert found.held == pytest.approx((2 * 8_030_261_248 + 16 * trained) / 8)
    wide = training_memory(LLAMA_8B, OptimizationConfig(lora=LoraConfig(rank=64)), Execution(workers=8, **GPUS))
    assert wide.held == pytest.approx((4 * 8_030_261_248 + 16 * trained) / 8), "float32 computes with float32"
    assert found.logits == 4 * 2**26, "the head has no gradient"


def test_options_move_what_they_say() -> None:
    whole = training_memory(LLAMA_8B, BFLOAT16, Execution(workers=8, **GPUS))
    offloaded = training_memory(LLAMA_8B, BFLOAT16, Execution(workers=8, cpu_offload=True, activation_offload=True, **GPUS))
    assert offloaded.held == 0 == offloaded.activations
    assert offloaded.device + offloaded.host == pytest.approx(whole.device)
    replicas = training_memory(LLAMA_8B, BFLOAT16, Execution(workers=8, replicas=2, **GPUS))
    assert replicas.held == pytest.approx(2 * whole.held), "four shards instead of eight"
    split = training_memory(LLAMA_8B, BFLOAT16, Execution(workers=8, tensor_parallel=2, **GPUS))
    outside = 1_050_677_248  # embedding and head, which no tensor group splits: four shards of them
    assert split.held == pytest.approx(16 * ((8_030_261_248 - outside) / 8 + outside / 4))
    assert split.gathered == 2 * (218_112_000 + outside), "two halves of a layer"
    alone = training_memory(LLAMA_8B, BFLOAT16, Execution(workers=1, **GPUS))
    assert alone.held == pytest.approx(16 * 8_030_261_248) and alone.gathered == 0
    replicated = training_memory(LLAMA_8B, BFLOAT16, Execution(workers=8, **GPUS | {"strategy": "ddp"}))
    assert replicated == alone, "ddp shares nothing"
    kept = training_memory(LLAMA_8B, BFLOAT16, Execution(workers=8, **GPUS | {"gradient_checkpointing": False}))
    assert kept.activations == 34 * whole.activations and kept.recomputed == 0


def test_moments_of_eight_bits_are_a_quarter() -> None:
    """Two codes of a byte, and two float32 scales of 256 of them: 2.03 bytes a weight in place of 8."""
    found = training_memory(LLAMA_8B, BFLOAT16.evolve(optimizer="adamw_8bit"), Execution(workers=8, **GPUS))
    assert found.optimizer == pytest.approx(8_030_261_248 * (2 + 8 / 256) / 8) and found.device == pytest.approx(19.84e9, rel=1e-3)


@pytest.mark.parametrize("name", ["llama", "tied", "gpt2"])
def test_sizes_are_read_from_the_files(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path, torch.bfloat16)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    size = ModelSize.of_folder(folder)
    assert size is not None
    layer = sum(p.numel() for p in next(iter(m for m in model.modules() if isinstance(m, torch.nn.ModuleList)))[0].parameters())
    assert size.parameters == sum(p.numel() for p in model.parameters()) == size.outside + 3 * size.layer
    assert (size.layer, size.layers, size.hidden, size.vocabulary, size.stored_bytes) == (layer, 3, 32, 101, 2)
    assert ModelSize.of_folder(saved(name, tmp_path / "wide")).stored_bytes == 4  # type: ignore[union-attr]


def test_what_is_no_model_has_no_size(tmp_path: Path) -> None:
    assert ModelSize.of_folder(tmp_path) is None
    (tmp_path / "config.json").write_text('{"hidden_size": 8, "vocab_size": 16}')
    assert ModelSize.of_folder(tmp_path) is None, "no weights"
    (tmp_path / "model.safetensors").write_bytes(b"\x00\x01")
    assert ModelSize.of_folder(tmp_path) is None, "damaged"
