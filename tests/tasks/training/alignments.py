"""A small alignment of the tests of its backends: the spec, and a store of the test's own."""

from __future__ import annotations

import shutil
from pathlib import Path

from dora_core.config.alignment import AlignConfig
from dora_core.config.execution import Execution
from dora_core.config.method import OptimizationConfig
from infra.store.store import Store
from tasks.runtime.stage import StageRef
from tasks.stages import align
from tests.tasks import conftest

Start = tuple[Path, StageRef, StageRef, StageRef]


def align_spec(start: Start, execution: Execution, epochs: float = 2.0) -> align.Spec:
    optimization = OptimizationConfig(epochs=epochs, batch_size=8, learning_rate=1e-3)
    return conftest.align_spec(start, AlignConfig(loss={"name": "dpo_pl"}, objective={"name": "dro"}, optimization=optimization), execution)


def own_store(start: Start, folder: Path) -> Store:
    shutil.copytree(start[0], folder / "store")
    return Store(str(folder / "store"))
