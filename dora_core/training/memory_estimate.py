"""Memory that training needs, computed from a model's shapes and the settings: the arithmetic of ``infra/README.md``.

Terms of one worker, in bytes: what it holds for any batch (weights, gradients, optimiser), what sharding gathers, what a micro-batch of T
tokens adds. The first are exact; activations are estimates for a transformer of hidden width h: 2·h bytes a token for each layer's input,
and about 34·2·h inside one layer (Korthikanti et al., arXiv 2205.05198, table 2, without the attention matrix, in bfloat16).
Imports no torch: the plan computes it for every run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from dora_core.config.execution import Execution
from dora_core.config.method import OptimizationConfig

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)\.")
LOGIT_BLOCK = 2**26
"""Logits in memory at once on a GPU (``models/linear_logps.py``), float32."""
INSIDE_A_LAYER = 34


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters, and the dimensions that activations depend on.

    Attributes:
        layer: parameters of the largest repeated block.
        outside: parameters of no block: embeddings, head, last norm; tied ones once.
        linear_edges: Σ (inputs + outputs) over the blocks' matrices: a low-rank adapter has rank times as many parameters.
        stored_bytes: bytes of a stored parameter; 2 for bfloat16 files.
    """

    parameters: int
    layer: int
    outside: int
    linear_edges: int
    layers: int
    hidden: int
    vocabulary: int
    stored_bytes: int = 2

    @classmethod
    def of_folder(cls, folder: Path) -> ModelSize | None:
        """From ``config.json`` and the headers of the safetensors files; None where they are not those of a language model."""
        try:
            settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            text = settings.get("text_config", settings)
            hidden, vocabulary = int(text.get("hidden_size") or text["n_embd"]), int(text["vocab_size"])
            tensors = [(name, shape, dtype) for file in folder.glob("*.safetensors") for name, shape, dtype in _header(file)]
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            return None
        blocks: dict[str, int] = {}
        outside = edges = 0
        for name, shape, _ in tensors:
            count = math.prod(shape)
            if block := _BLOCK.search(name):
                blocks[block.group(1)] = blocks.get(block.group(1), 0) + count
                edges += sum(shape) if len(shape) == 2 else 0
            else:
                outside += count
        if not blocks:
            return None
        total = outside + sum(blocks.values())
        narrow = all(dtype in ("BF16", "F16") for *_, dtype in tensors)
        return cls(total, max(blocks.values()), outside, edges, len(blocks), hidden, vocabulary, 2 if narrow else 4)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one worker on its device, and in host memory besides."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float
    recomputed: float
    logits: float
    host: float

    @property
    def held(self) -> float:
        """What every batch needs, however small: weights, gradients and optimiser state."""
        return self.weights + self.gradients + self.optimizer

    @property
    def device(self) -> float:
        """Sum of the terms on the device."""
        terms: list[float] = [getattr(self, field.name) for field in fields(self) if field.name != "host"]
        return sum(terms)


def training_memory(size: ModelSize, optimization: OptimizationConfig, execution: Execution) -> TrainingMemory:
    """Memory of one worker that trains a model of ``size``, its batches at their largest (``execution.micro_batch_tokens``)."""
    sharded = execution.strategy == "fsdp" and execution.workers > 1
    tensor = execution.tensor_parallel if sharded else 1
    shards = execution.workers // execution.replicas // tensor if sharded else 1
    size = dataclasses.replace(  # a worker's part, in its tensor group, of each layer
        size,
        parameters=size.outside + (size.parameters - size.outside) // tensor,
        layer=size.layer // tensor,
    )
    bfloat16, lora = optimization.precision == "bfloat16", optimization.lora
    computed = 2 if bfloat16 else 4
    trained = size.parameters if lora is None else lora.rank * size.linear_edges
    narrow = sharded and bfloat16 and lora is not None and size.stored_bytes == 2  # frozen weights stay as they are stored
    frozen = 0 if lora is None else size.parameters * (2 if narrow else 4)
    moment = 8 if optimization.optimizer == "adamw" else 2 * (1 + 4 / 256)  # a code each, and a scale of 256 of them
    weights, gradients, moments = ((frozen + 4 * trained) / shards, 4 * trained / shards, moment * trained / shards)
    tokens = execution.micro_batch_tokens * size.hidden * computed
    kept = size.layers * tokens * (1 if execution.gradient_checkpointing else INSIDE_A_LAYER)
    offloaded = kept if execution.activation_offload else 0.0
    state = weights + gradients + moments
    return TrainingMemory(
        weights=0.0 if execution.cpu_offload else weights,
        gradients=0.0 if execution.cpu_offload else gradients,
        optimizer=0.0 if execution.cpu_offload else moments,
        gathered=computed * (2 * size.layer + size.outside) if sharded else 0.0,
        activations=kept - offloaded,
        recomputed=INSIDE_A_LAYER * tokens if execution.gradient_checkpointing else 0.0,
        logits=4 * LOGIT_BLOCK + (4 * size.vocabulary * size.hidden if lora is None else 0),
        host=(state if execution.cpu_offload else 0.0) + offloaded,
    )


def _header(file: Path) -> Iterator[tuple[str, list[int], str]]:
    """Names, shapes and dtypes of the tensors in a safetensors file, from its first bytes."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, entry["shape"], entry["dtype"]
