"""The real ``calibrate`` stage on a world small enough to be scored again and again, and a scorer that meets with faults."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file

from dora_core.config.data import DataConfig, DataSource
from dora_core.config.execution import Execution
from dora_core.config.method import CalibrationConfig, ClassifierConfig, ModelConfig
from dora_core.data.inputs import fingerprint_sources
from dora_core.testbed.mixture import Testbed, TestbedConfig
from infra.store.store import Store
from tasks.runtime.stage import StageRef, execute
from tasks.stages import calibrate, classify, ingest
from tasks.stages.classify import LogitArguments, LogitScorer
from tasks.tables.rows import read_index
from tests.tasks.conftest import GOLDEN

ENCODER = ModelConfig(hidden_size=16, layers=1, heads=2, vocab_size=300)
CLASSIFIER = ClassifierConfig(encoder=ENCODER, folds=2, epochs=1, max_prompt_tokens=8, max_response_tokens=32)
SHARD_ROWS = 20
ALONE = Execution(workers=0, shard_rows=SHARD_ROWS)
TWO_ACTORS = Execution(workers=2, cpus_per_worker=1, shard_rows=SHARD_ROWS, max_failures=1)


@dataclass(frozen=True)
class World:
    """``files``: names and sha256 of what a run without faults leaves in the store, scores and calibration table; ``keys`` of its rows."""

    root: Path
    records: StageRef
    classifier: StageRef
    files: dict[str, str]
    keys: list[int]


def make_world(folder: Path) -> World:
    """Ingested, fitted and once calibrated."""
    store = Store(str(folder / "store"))
    data = Testbed(TestbedConfig(prompts=60, responses_per_prompt=3, sources=2, shift=2.0)).write(folder / "data.parquet")
    config = DataConfig(train=[DataSource(path=str(data))], golden_sources=GOLDEN)
    records = ingest.Spec(data=config, fingerprints=fingerprint_sources(config))
    execute(records, ingest.run, store)
    fit = classify.Spec(records=records.ref(), classifier=CLASSIFIER, golden_sources=GOLDEN, execution=ALONE)
    execute(fit, classify.run, store)
    use_encoder(store, fit.ref())
    start = folder / "start"
    shutil.copytree(store.local_root, start)
    execute(spec_of(records.ref(), fit.ref()), calibrate.run, store)
    keys = read_index(store.fetch("ingest", records.digest()) / "records.parquet", "train").key_N
    assert len(set(keys.tolist())) == len(keys) > 5 * SHARD_ROWS
    return World(start, records.ref(), fit.ref(), written(store), keys.tolist())


def spec_of(records: StageRef, classifier: StageRef, execution: Execution = ALONE, **settings: Any) -> calibrate.Spec:
    config = CalibrationConfig(**settings)
    return calibrate.Spec(records=records, classifier=classifier, calibration=config, golden_sources=GOLDEN, execution=execution)


def run(store: Store, world: World, execution: Execution = ALONE, **settings: Any) -> dict[str, Any]:
    return execute(spec_of(world.records, world.classifier, execution, **settings), calibrate.run, store)


def written(store: Store) -> dict[str, str]:
    """Output and row cache by name and content: what must not depend on faults. Nothing else may be left."""
    (result,) = [json.loads(path.read_text()) for path in store.local_root.glob("calibrate/*/result.json")]
    assert not [p for p in store.local_root.rglob("*") if p.name.endswith(".tmp") or p.name == "scratch"]
    return {name: facts["sha256"] for name, facts in result["files"].items()} | {p.name: "" for p in store.local_root.glob("scores/*/*")}


def markers(store: Store) -> dict[int, dict[str, Any]]:
    """Of the finished shards of an unfinished stage, by first row."""
    return {int(p.name[:12]): json.loads(p.read_text()) for p in store.local_root.glob("calibrate/*/scratch/scores/*.json")}


def alter(store: Store, classifier: StageRef, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Another classifier by the same name: its weights as ``change`` leaves them."""
    folder = store.folder(classifier.stage, classifier.digest)
    for path in folder.path.glob("classifier/fold-*/heads.safetensors"):
        heads = load_file(path)
        change(heads)
        save_file(heads, path)
    result = store.read_result(classifier.stage, classifier.digest)
    assert result is not None
    store.mark_done(folder, result)


def use_encoder(store: Store, classifier: StageRef) -> None:
    """A fit on so few rows leaves the deep part at 0; here it counts."""
    generator = torch.Generator().manual_seed(0)
    alter(store, classifier, lambda heads: heads["head.weight"].normal_(std=0.1, generator=generator))


@dataclass(frozen=True)
class Fault:
    """What happens in the middle of the shard that holds the row ``key``: the actor waits to be ``killed``, kills itself each time it
    ``dies``, or it ``raises``. ``folder``: of this fault's notes."""

    kind: str
    key: int
    folder: Path


class FaultyScorer(LogitScorer):
    """The real scorer; notes the rows of every shard that it finishes."""

    def __init__(self, fault: Fault, arguments: LogitArguments):
        super().__init__(arguments)
        self._fault = fault

    def __call__(self, rows: pa.Table) -> pa.Table:
        keys, pid = rows["key"].to_pylist(), self._fault.folder / "pid"
        if self._fault.key in keys and (self._fault.kind == "dies" or not pid.exists()):
            super().__call__(rows.slice(0, len(keys) // 2))
            pid.write_text(f"{os.getpid()}\n")
            if self._fault.kind == "raises":
                raise ConnectionError("the network is gone")
            if self._fault.kind == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        table = super().__call__(rows)
        with (self._fault.folder / "scored").open("a") as file:
            file.write("".join(f"{key}\n" for key in keys))
        return table


def scored(fault: Fault) -> list[int]:
    """Keys, in shards that were finished, as often as they were."""
    notes = fault.folder / "scored"
    return sorted(map(int, notes.read_text().split())) if notes.exists() else []


def shard_of(fault: Fault, world: World) -> int:
    """First row of the shard that holds the fault."""
    return world.keys.index(fault.key) // SHARD_ROWS * SHARD_ROWS
