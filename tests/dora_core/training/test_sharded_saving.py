"""Saving block by block: the files hold what a plain save holds. (With several ranks: test_sharding.)"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from dora_core.config.method import LoraConfig
from dora_core.models.adapters import add_lora, merge_lora
from dora_core.training.distributed import Worker
from dora_core.training.sharded_saving import _gather, save_sharded
from tests.dora_core.models.small_models import NAMES, saved
from tests.ranks import RANKS, run_ranks

SIZES = (1, 4, 5)
"""Rows of parameters over two ranks: the second has none, half, and fewer."""


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("name", NAMES)
def test_names_layouts_and_settings_are_those_of_a_plain_save(name: str, tmp_path: Path) -> None:
    """Experts that were merged when they were read are apart again, and a tied head is saved once."""
    model = transformers.AutoModelForCausalLM.from_pretrained(saved(name, tmp_path / "start"), dtype=torch.float32)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "plain")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "start", dtype=torch.float32)
    save_sharded(nn.ModuleDict({"model": model}), model, tmp_path / "ours", torch.bfloat16, Worker())
    expected, got = tensors(tmp_path / "plain"), tensors(tmp_path / "ours")
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[at], weight) and got[at].dtype == torch.bfloat16 for at, weight in expected.items())
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == expected.keys()
    assert index["metadata"]["total_size"] == sum(2 * weight.numel() for weight in expected.values())
    settings = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("plain", "ours")]
    assert settings[0] == settings[1] and settings[1]["dtype"] == "bfloat16"


@pytest.mark.parametrize(("name", "targets"), [("llama", "all-linear"), ("gpt2", ["c_attn", "c_proj"]), ("tied", ["q_proj", "down_proj"])])
def test_adapters_are_merged_as_by_peft(name: str, targets: str | list[str], tmp_path: Path) -> None:
    start = saved(name, tmp_path / "start")
    lora = LoraConfig(rank=4, alpha=16, target_modules=targets)

    def adapted() -> nn.Module:
        torch.manual_seed(0)
        model = add_lora(transformers.AutoModelForCausalLM.from_pretrained(start), lora)
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.1)
        return model

    model = adapted()
    save_sharded(nn.ModuleDict({"model": model}), model.get_base_model(), tmp_path / "ours", torch.float32, Worker())
    expected = merge_lora(adapted()).state_dict()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    before = transformers.AutoModelForCausalLM.from_pretrained(start).state_dict()
    assert again.keys() == expected.keys()
    for at, weight in expected.items():
        torch.testing.assert_close(again[at], weight, rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(again[at], weight) for at, weight in before.items())


def gather_rows(worker: Worker, folder: str) -> None:
    """Spread numbers over the ranks, gather them, and write on rank 0 what came."""
    mesh = init_device_mesh("cpu", (RANKS,))
    numbers = [torch.arange(rows * 3.0).reshape(rows, 3) for rows in SIZES]
    module = nn.ParameterList([nn.Parameter(distribute_tensor(number, mesh, [Shard(0)])) for number in numbers])
    names = [name for name, _ in module.named_parameters()]
    kept = _gather(module, names, dict.fromkeys(names, torch.float32), keep=worker.rank == 0)
    assert len(kept) == (len(names) if worker.rank == 0 else 0)
    if worker.rank == 0:
        torch.save(list(kept.values()), Path(folder) / "kept.pt")


def test_rows_come_to_rank_0_in_their_order_also_where_a_rank_has_none(tmp_path: Path) -> None:
    run_ranks(gather_rows, str(tmp_path))
    for rows, kept in zip(SIZES, torch.load(tmp_path / "kept.pt"), strict=True):
        assert torch.equal(kept, torch.arange(rows * 3.0).reshape(rows, 3))
