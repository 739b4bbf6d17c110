"""Host memory of sharded training: a random Llama of 1.3 billion parameters in bfloat16 on four gloo ranks of this machine.

Each rank reads its rows (``dora_core/models/sharded_loading.py``), shards (``training/sharding.py``) and saves
(``training/sharded_saving.py``). Figure: the rank's peak resident memory (VmHWM, file pages included) less that of the same process before
it touched the model. Target: 1.25 × (its share + one layer). Beside it the way without shards, one rank alone, since all are the same.

    python -m tests.benchmarks.bench_size [--layers 24] [--ranks 4] [--save FILE]
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
import transformers
from safetensors.torch import save_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from dora_core.config.method import ModelConfig
from dora_core.models.sharded_loading import Share, build_on_meta, load_sharded, model_class, read_config
from dora_core.training.distributed import Sharding, Worker
from dora_core.training.sharded_saving import save_sharded
from dora_core.training.sharding import shard
from tests.benchmarks.harness import Row, argument_parser, report

MIB = 2**20
TARGET = 1.25


def write_model(folder: Path, layers: int) -> tuple[int, int]:
    """Write random weights, a file per layer; (bytes of all, bytes of one layer)."""
    config = transformers.LlamaConfig(
        hidden_size=2048, intermediate_size=5504, num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=16,
        vocab_size=32000, tie_word_embeddings=False, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    model = build_on_meta(transformers.LlamaForCausalLM, config, torch.bfloat16)
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(name.rpartition(".layers.")[2].partition(".")[0] if ".layers." in name else name, {})[name] = parameter
    index: dict[str, str] = {}
    sizes = []
    for number, (_, parameters) in enumerate(groups.items()):
        tensors = {name: torch.randn(p.shape, dtype=torch.bfloat16) * 0.02 for name, p in parameters.items()}
        save_file(tensors, folder / f"model-{number:05d}.safetensors", metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, f"model-{number:05d}.safetensors")
        sizes.append(sum(t.numel() * t.element_size() for name, t in tensors.items()))
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    layer = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if ".layers.0." in name)
    return sum(sizes), layer


def peak() -> int:
    """VmHWM of this process, bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    """Start VmHWM anew at the current resident memory."""
    Path("/proc/self/clear_refs").write_text("5")


def sharded_rank(rank: int, folder: str, ranks: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    root = Path(folder)
    torch.distributed.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=ranks)
    worker = Worker.current()
    config = ModelConfig(source=folder)
    settled = read_config(config)
    kind = model_class(transformers.AutoModelForCausalLM, settled)
    torch.distributed.barrier()
    reset_peak()
    before = peak()
    found: dict[str, Any] = {}
    sharding = Sharding(worker)
    share = Share(sharding.rank, sharding.shards)
    start = load_sharded(kind, settled, config, share, torch.bfloat16, worker.device)
    model = start.model
    model.requires_grad_(False)
    layers = list(model.model.layers)
    shard(model, layers, start.rows, share, sharding)
    found["read and shard"] = peak() - before
    torch.distributed.barrier()
    reset_peak()
    with torch.no_grad():
        model(torch.arange(32)[None], use_cache=False)
    found["forward pass of 32 tokens"] = peak() - before
    for part in (*layers, model):
        part.reshard()  # so that the peak of saving begins with the share alone
    torch.distributed.barrier()
    reset_peak()
    save_sharded(model, model, root / "saved", torch.bfloat16, worker)
    found["save"] = peak() - before
    (root / f"rank-{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def plain_rank(_: int, folder: str) -> None:
    """The way without shards: every rank reads the whole model in float32."""
    reset_peak()
    before = peak()
    transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    (Path(folder) / "plain.json").write_text(json.dumps(peak() - before))


def measure(layers: int, ranks: int) -> list[Row]:
    folder = Path(tempfile.mkdtemp(prefix="bench-size-"))
    try:
        total, layer = write_model(folder, layers)
        mp.spawn(sharded_rank, (str(folder), ranks), nprocs=ranks)
        mp.spawn(plain_rank, (str(folder),), nprocs=1)
        of_ranks = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]
        plain = json.loads((folder / "plain.json").read_text())
    finally:
        shutil.rmtree(folder)
    share = total / ranks
    bound = share + layer
    limit = f"share {share / MIB:,.0f} MiB + one layer {layer / MIB:,.0f} MiB"
    rows = [Row(f"{total / 2 / 1e9:.2f} billion parameters, bfloat16: whole", f"{total / MIB:,.0f} MiB")]
    rows.append(Row("without shards, float32, every rank: peak", f"{plain / MIB:,.0f} MiB"))
    for phase in of_ranks[0]:
        worst = max(found[phase] for found in of_ranks)
        held_to = phase != "forward pass of 32 tokens"
        target = f"≤ {TARGET * bound / MIB:,.0f} MiB" if held_to else ""
        figure = f"{worst / MIB:,.0f} MiB = {worst / bound:.2f} ×"
        rows.append(
            Row(f"{phase}, {ranks} ranks: peak of the largest", figure, target, worst <= TARGET * bound if held_to else None, limit)
        )
    return rows


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--ranks", type=int, default=4)
    options = parser.parse_args()
    report("Host memory of a rank", measure(options.layers, options.ranks), options.save)
