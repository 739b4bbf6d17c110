"""Two ranks that read, train, save and resume by shards, against one process with the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from dora_core.config.execution import Execution
from dora_core.models.adapters import add_lora, merge_lora
from dora_core.models.sharded_loading import CannotShard, Share
from dora_core.training.distributed import Worker
from dora_core.training.loop import FolderHooks, fit
from dora_core.training.sharding import local_rows
from tests.dora_core.models.packed_records import RECORDS as PACKED
from tests.dora_core.models.small_models import NAMES, saved
from tests.dora_core.training.alignment_tasks import make_data, make_task
from tests.dora_core.training.sharded_ranks import (
    CONFIG,
    IDS,
    LORA,
    TENSOR_MODELS,
    TENSOR_NAMES,
    WAYS,
    rank_main,
    tensor_model,
    tensor_training_model,
    tokenizer,
    training_model,
    values_and_gradients,
)
from tests.ranks import run_ranks


def train_alone(folder: Path, checkpoints: Path, lora: Any = None) -> tuple[Any, nn.Module]:
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    task = make_task(plain, tokenizer(), make_data(plain, tokenizer()))
    if lora is not None:
        torch.manual_seed(1)
        task.module.model = add_lora(plain, lora)
    report = fit(task, CONFIG, Execution(micro_batch_size=1, checkpoint_every=2), Worker(), FolderHooks(checkpoints), run="mine")
    return report, merge_lora(task.module.model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the two ranks left: see ``sharded_ranks.py``."""
    folder = tmp_path_factory.mktemp("shards")
    for name in NAMES:
        saved(name, folder / name)
    training_model(folder / "start")
    tensor_training_model(folder / "tensor-start")
    train_alone(folder / "start", folder / "alone-checkpoints")
    run_ranks(rank_main, str(folder))
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """Weights after training in one process, all of them or adapters."""
    return {
        name: train_alone(folder / "start", tmp_path_factory.mktemp(name), lora)[1].state_dict()
        for name, lora in (("whole", None), ("lora", LORA))
    }


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_saved_weights_are_the_plain_ones(name: str, folder: Path) -> None:
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder / name).eval()
    with torch.no_grad():
        expected = plain(IDS).logits
    for rank in range(2):
        torch.testing.assert_close(torch.load(folder / f"{name}-{rank}.pt"), expected, rtol=1e-6, atol=1e-6)
    again = transformers.AutoModelForCausalLM.from_pretrained(folder / f"{name}-saved")
    assert again.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(weight, plain.state_dict()[at]) for at, weight in again.state_dict().items())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return found


def assert_trained_alike(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> None:
    """To 1e-3 of what training changed: rounding of float32 sums in another order, through four steps of Adam."""
    assert got.keys() == expected.keys()
    moved = max((expected[name] - start[name]).abs().max().item() for name in start)
    gap = max((got[name] - expected[name]).abs().max().item() for name in expected)
    assert moved > 1e-3 and gap < 1e-3 * moved, (moved, gap)


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_train_like_one(way: str, folder: Path, alone) -> None:
    assert_trained_alike(weights(folder / f"{way}-trained"), alone["lora" if way == "lora" else "whole"], weights(folder / "start"))


@pytest.mark.parametrize("name", TENSOR_NAMES)
def test_what_a_tensor_group_read_is_saved_unchanged(name: str, folder: Path) -> None:
    start, saved_again = weights(folder / name), weights(folder / f"{name}-tensor-saved")
    assert saved_again.keys() == start.keys()
    assert all(torch.equal(weight, start[at]) for at, weight in saved_again.items())


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", TENSOR_MODELS)
def test_a_tensor_group_computes_what_one_process_does(name: str, packed: bool, folder: Path) -> None:
    """Log-probabilities and gradients of all weights in float64, on both ranks."""
    expected = values_and_gradients(tensor_model(name), PACKED, packed=packed)
    for rank in range(2):
        got = torch.load(folder / f"{name}-{packed}-{rank}.pt")
        assert got.keys() == expected.keys()
        for at, value in expected.items():
            torch.testing.assert_close(got[at], value, rtol=0, atol=1e-12 * value.abs().max().item(), msg=at)


def test_a_tensor_group_trains_and_resumes_like_one_process(folder: Path, tmp_path: Path) -> None:
    expected = train_alone(folder / "tensor-start", tmp_path)[1].state_dict()
    start = weights(folder / "tensor-start")
    assert_trained_alike(weights(folder / "tensor-trained"), expected, start)
    assert [torch.load(folder / f"tensor-resumed-{rank}.pt") for rank in range(2)] == [2, 2]
    assert_trained_alike(weights(folder / "tensor-resumed-trained"), expected, start)


def test_shards_resume_from_one_process_and_one_process_from_shards(folder: Path, alone) -> None:
    assert [torch.load(folder / f"resumed-{rank}.pt") for rank in range(2)] == [2, 2]
    assert_trained_alike(weights(folder / "resumed-trained"), alone["whole"], weights(folder / "start"))
    report, model = train_alone(folder / "start", folder / "whole-checkpoints")
    assert report.resumed_from == 2
    assert_trained_alike(model.state_dict(), alone["whole"], weights(folder / "start"))


def test_a_checkpoint_holds_each_rows_once(folder: Path) -> None:
    """Weights and AdamW's two moments are 3 × 4 bytes a weight: two ranks that each wrote all of it would have written it twice, and the
    headers of these small tensors are nearly as large again."""
    count = sum(w.numel() for w in weights(folder / "start").values())
    sizes = [file.stat().st_size for file in sorted((folder / "whole-checkpoints" / "step-2").glob("__*"))]
    assert len(sizes) == 2 and 12 * count < sum(sizes) < 2 * 12 * count
    assert max(sizes) < 0.6 * sum(sizes)


def test_what_starts_from_the_weights_themselves_is_refused() -> None:
    """A DoRA adapter's magnitudes are norms of the base weights, which no rank has."""
    module = nn.Linear(4, 3, bias=False)
    placeholder = nn.Parameter(torch.full((), torch.nan).expand(3, 4), requires_grad=False)
    module.weight = placeholder
    module.magnitude = nn.Parameter(module.weight.detach().norm(dim=1))
    with pytest.raises(CannotShard, match="magnitude starts from the weights themselves"):
        local_rows(module, {placeholder: torch.zeros(2, 4)}, Share(0, 2))


def test_a_trained_copy_has_the_rows_of_its_original_in_float32() -> None:
    """peft's modules to save: a frozen original and a trained copy of it."""
    placeholder = nn.Parameter(torch.full((), torch.nan, dtype=torch.bfloat16).expand(3, 4), requires_grad=False)
    head = nn.Module()
    head.original_module, head.modules_to_save = nn.Module(), nn.ModuleDict({"default": nn.Module()})
    head.original_module.weight = placeholder
    head.modules_to_save["default"].weight = nn.Parameter(torch.full((3, 4), torch.nan, dtype=torch.bfloat16))
    module = nn.ModuleDict({"head": head})
    rows = torch.arange(8, dtype=torch.bfloat16).reshape(2, 4)
    local = local_rows(module, {placeholder: rows}, Share(0, 2))
    assert local["head.original_module.weight"].dtype == torch.bfloat16
    assert local["head.modules_to_save.default.weight"].dtype == torch.float32
    assert torch.equal(local["head.modules_to_save.default.weight"], rows.float())
