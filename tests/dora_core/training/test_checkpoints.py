"""A checkpoint is used only if it is whole and of this run; every way in which it may not be is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dora_core.config.method import OptimizationConfig
from dora_core.training import checkpoints
from dora_core.training.checkpoints import PROGRESS, flaw, identity, save_checkpoint
from dora_core.training.distributed import Worker

CONFIG = OptimizationConfig()


def network(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width))


def identity_of(module: nn.Module, run: str = "run", records: int = 10, config: OptimizationConfig = CONFIG) -> dict:
    return identity(module, run, records, config)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    module = network()
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "step-4", module, optimizer, {"step": 4}, identity_of(module), Worker())
    return tmp_path / "step-4"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_one_that_is_whole_and_ours_has_no_flaw(checkpoint: Path) -> None:
    assert flaw(checkpoint, identity_of(network()), Worker()) == ""


@pytest.mark.fault(5, 23)
@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("__0_0.distcp", cut, "__0_0.distcp is damaged"),
        ("__0_0.distcp", flip, "__0_0.distcp is damaged"),
        ("__0_0.distcp", Path.unlink, "__0_0.distcp is missing"),
        (".metadata", cut, ".metadata is damaged"),
        (PROGRESS, cut, "progress.json is damaged"),
        (PROGRESS, Path.unlink, "never finished"),
        (PROGRESS, lambda path: path.write_text(json.dumps({"step": 4, "curve": {}, "task": {}})), "another version of dora"),
    ],
)
def test_damage_is_named(checkpoint: Path, name: str, damage: Callable[[Path], object], reason: str) -> None:
    damage(checkpoint / name)
    assert reason in flaw(checkpoint, identity_of(network()), Worker())


@pytest.mark.fault(19, 23)
def test_what_differs_in_a_foreign_one_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(mine: dict) -> str:
        return flaw(checkpoint, mine, Worker())

    assert reason(identity_of(network(width=5))) == "it is of another run: other weights"
    frozen = network().requires_grad_(False)
    assert reason(identity_of(frozen)) == "it is of another run: other weights", "the optimiser holds no state of frozen weights"
    assert reason(identity_of(network(), run="other", records=11)) == "it is of another run: other run, records"
    assert reason(identity_of(network(), config=OptimizationConfig(learning_rate=0.5))) == "it is of another run: other optimization"
    monkeypatch.setattr(checkpoints, "FORMAT", checkpoints.FORMAT + 1)
    assert reason(identity_of(network())) == "it is of another run: other format"
