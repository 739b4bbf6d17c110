"""Checkpoints that training writes are read back; code planted in one is not run."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from dora_core.errors import StoreError
from dora_core.training.checkpoints import load_checkpoint, save_checkpoint
from dora_core.training.distributed import Worker


class Planted:
    """Runs when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    module(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    return module, optimizer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "checkpoint", *trained(), {"step": 7}, {}, Worker())
    return tmp_path / "checkpoint"


def test_what_training_wrote_is_read_back(checkpoint: Path) -> None:
    module, optimizer = trained()
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    optimizer.param_groups[0]["lr"] = 0.5
    assert load_checkpoint(checkpoint, module, optimizer, Worker()) == {"step": 7}
    wanted, state = trained()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), wanted.parameters(), strict=True))
    assert optimizer.param_groups[0]["lr"] == state.param_groups[0]["lr"] == 0.01


@pytest.mark.fault(23)
def test_code_in_the_table_of_contents_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    trace, table = tmp_path / "trace", pickle.loads((checkpoint / ".metadata").read_bytes())
    table.planner_data = Planted(trace)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(table))
    with pytest.raises(StoreError, match=r"its table of contents names pathlib.*Path\.touch"):
        load_checkpoint(checkpoint, *trained(), Worker())
    (checkpoint / ".metadata").rename(checkpoint / "__0.metadata")  # torch looks for one of the rank first
    with pytest.raises(FileNotFoundError):
        load_checkpoint(checkpoint, *trained(), Worker())
    assert not trace.exists()
    pickle.loads((checkpoint / "__0.metadata").read_bytes())  # it would have run
    assert trace.exists()


@pytest.mark.fault(23)
def test_code_in_a_scalar_is_refused(tmp_path: Path) -> None:
    """The learning rate, replaced; as torch itself would write it."""
    module, optimizer = trained()
    optimizer.param_groups[0]["lr"] = Planted(tmp_path / "trace")  # type: ignore[assignment]
    save_checkpoint(tmp_path / "checkpoint", module, optimizer, {"step": 7}, {}, Worker())
    with pytest.raises(StoreError, match=r"optimizer\.param_groups\.0\.lr is not a number"):
        load_checkpoint(tmp_path / "checkpoint", *trained(), Worker())
    assert not (tmp_path / "trace").exists()
    state = {"weights": {}, "optimizer": {"param_groups.0.lr": 0.0}}
    dcp.load(state, checkpoint_id=str(tmp_path / "checkpoint"), no_dist=True)
    assert (tmp_path / "trace").exists()
