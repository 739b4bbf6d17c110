"""Trials on the tiny realignment, for tests of the stages that run and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dora_core.config.alignment import AlignConfig
from dora_core.config.execution import Execution
from dora_core.config.method import OptimizationConfig
from dora_core.config.tuning import TuneConfig
from infra.store.store import Store
from tasks.runtime.stage import StageRef
from tasks.stages import trial, tune
from tasks.tables.record_selection import HeldOutPrompts
from tests.tasks import conftest
from tests.tasks.conftest import IN_PROCESS

TUNE = TuneConfig(fraction=0.5, rungs=2, reduction=3, folds=2, bootstrap_samples=100)
HELD_OUT = HeldOutPrompts(folds=2, fold=0)

Start = tuple[Path, StageRef, StageRef, StageRef]


def trial_spec(start: Start, execution: Execution = IN_PROCESS, learning_rate: float = 3e-3, **settings: Any) -> trial.Spec:
    """A trial of 6 steps, measured after 2 and 6; every source is golden, so that the few held-out prompts have pairs."""
    optimization = OptimizationConfig(epochs=4.0, batch_size=8, learning_rate=learning_rate, max_steps=12)
    align = conftest.align_spec(start, AlignConfig(loss={"name": "dpo"}, objective={"name": "erm"}, optimization=optimization), execution)
    fields = {name: getattr(align, name) for name in type(align).model_fields if name != "held_out"}
    return trial.Spec(**fields, held_out=HELD_OUT, tune=TUNE, golden_sources=["*"], **settings)


def search_of(trials: list[trial.Spec], minutes: float | None = None) -> tune.Spec:
    """A search over trials; the first is the configuration as it is."""
    named = {f"trial {number}": spec for number, spec in enumerate(trials)}
    values = {name: {"align.optimization.learning_rate": spec.align.optimization.learning_rate} for name, spec in named.items()}
    return tune.search_spec(named, values | {"trial 0": {}}, TUNE, minutes)


def rung_files(store: Store, spec: trial.Spec) -> dict[str, float]:
    """Times of last change of a trial's measurements."""
    folder = store.local(f"trial/{spec.digest()}/rungs")
    return {path.name: path.stat().st_mtime for path in sorted(folder.glob("*.json"))}
