"""Checkpoints of a training run: a partly written one is recognised, each is verified before use, and the number of ranks may change.

A checkpoint is a folder: weights and optimiser state as ``torch.distributed.checkpoint`` shards them, then, last and atomically,
``progress.json``: the run's progress and identity, and the sha256 of every other file. A folder without it belongs to a run that was
killed while it wrote. Weights are never loaded from a checkpoint that is damaged or of another run (:func:`flaw`).

Cost: every rank reads its files back once, from the page cache, and at resume its share of the files.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import save

from dora_core.config.method import OptimizationConfig
from dora_core.training.distributed import Worker
from dora_core.training.safe_load import load_safely, plain_errors

PROGRESS = "progress.json"
FORMAT = 1
"""Raise it when the content of a checkpoint or its meaning changes."""


def identity(module: nn.Module, run: str, records: int, config: OptimizationConfig) -> dict[str, Any]:
    """Identity of a run: the same for any number of ranks and either strategy. ``module`` is not yet wrapped for distribution."""
    weights = [[name, list(p.shape), p.requires_grad] for name, p in module.named_parameters()]
    return {
        "format": FORMAT,
        "run": run,
        "records": records,
        "optimization": config.model_dump(mode="json"),
        "weights": hashlib.sha256(json.dumps(weights).encode()).hexdigest(),
    }


def save_checkpoint(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
    run_identity: dict[str, Any],
    worker: Worker,
) -> None:
    """Write weights, optimiser state and ``progress`` (JSON-able) into ``folder``. Call on every rank; without a shared folder
    each rank has its part in its own, and the caller brings them together."""
    weights, moments = get_state_dict(module, optimizer)
    with plain_errors():
        save({"weights": weights, "optimizer": moments}, checkpoint_id=str(folder), no_dist=worker.group is None)
    mine = [*folder.glob(f"__{worker.rank}_*"), *([folder / ".metadata"] if worker.rank == 0 else [])]
    shares = worker.gather({path.name: _sha256(path) for path in mine})
    if worker.rank == 0:
        files = {name: digest for share in shares for name, digest in share.items()}
        _write_last(folder / PROGRESS, json.dumps({"identity": run_identity, "files": files, "progress": progress}))


def flaw(folder: Path, run_identity: dict[str, Any], worker: Worker) -> str:
    """The reason not to use this checkpoint; empty if it is whole and of this run. Call on every rank: all get the same answer."""
    reasons = worker.gather(_flaw(folder, run_identity, worker))
    return next(filter(None, reasons), "")


def load_checkpoint(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, worker: Worker) -> dict[str, Any]:
    """Restore what :func:`save_checkpoint` wrote, bit for bit; the number of ranks may differ. Returns ``progress``.

    Raises:
        StoreError: it holds pickled data that could run code.
    """
    weights, moments = get_state_dict(module, optimizer)
    state: dict[str, Any] = {"weights": weights, "optimizer": moments}
    load_safely(state, folder, alone=worker.group is None)
    set_state_dict(module, optimizer, model_state_dict=state["weights"], optim_state_dict=state["optimizer"])
    progress: dict[str, Any] = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))["progress"]
    return progress


def _flaw(folder: Path, run_identity: dict[str, Any], worker: Worker) -> str:
    try:
        found = json.loads((folder / PROGRESS).read_bytes())
        theirs, files = found["identity"], sorted(found["files"].items())
        different = [name for name in run_identity if theirs.get(name) != run_identity[name]]
    except FileNotFoundError:
        return f"it was never finished: {PROGRESS} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {PROGRESS} is damaged, or another version of dora wrote it"
    if different:
        return f"it is of another run: other {', '.join(different)}"
    for name, digest in files[worker.rank :: worker.world_size]:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _sha256(path) != digest:
            return f"{name} is damaged: its sha256 is not the one noted when it was written"
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_last(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
