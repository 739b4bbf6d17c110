"""A small known mixture, ingested, for tests of the stages after it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dora_core.config.alignment import AlignConfig
from dora_core.config.data import DataConfig, DataSource
from dora_core.config.execution import Execution
from dora_core.config.method import ModelConfig, OptimizationConfig, SftConfig, TextConfig
from dora_core.data.inputs import fingerprint_sources
from dora_core.testbed.mixture import Testbed, TestbedConfig
from infra.store.store import Store
from tasks.runtime.stage import StageRef, execute
from tasks.stages import align, ingest, reference, sft, training_data

if TYPE_CHECKING:
    from tests.tasks.scoring import Fault, World

IN_PROCESS = Execution(workers=0)
TEXT = TextConfig(max_prompt_tokens=48, max_response_tokens=48)
TINY = ModelConfig(hidden_size=32, layers=1, heads=2, vocab_size=500)
GOLDEN = ["human"]


@pytest.fixture(scope="session")
def pipeline_start(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StageRef, StageRef, StageRef]:
    """(store, records, sft, reference) of a tiny realignment, computed once, with the training data of a listwise loss. Copy the store
    before writing to it."""
    folder = tmp_path_factory.mktemp("pipeline")
    data = Testbed(TestbedConfig(prompts=80, responses_per_prompt=3)).write(folder / "data.parquet")
    store = Store(str(folder / "store"))
    config = DataConfig(train=[DataSource(path=str(data))], golden_sources=GOLDEN, holdout_fraction=0.3)
    records = ingest.Spec(data=config, fingerprints=fingerprint_sources(config))
    execute(records, ingest.run, store)
    start = sft.Spec(
        records=records.ref(),
        model=TINY,
        text=TEXT,
        sft=SftConfig(optimization=OptimizationConfig(epochs=2, batch_size=16, learning_rate=3e-3)),
        golden_sources=GOLDEN,
        execution=IN_PROCESS,
    )
    execute(start, sft.run, store)
    logps = reference.Spec(records=records.ref(), start=start.ref(), model=TINY, text=TEXT, execution=IN_PROCESS)
    execute(logps, reference.run, store)
    result = store.local_root, records.ref(), start.ref(), logps.ref()
    prepare(align_spec(result, AlignConfig(loss={"name": "dpo_pl"})), store)
    return result


def align_spec(start: tuple[Path, StageRef, StageRef, StageRef], config: AlignConfig, execution: Execution = IN_PROCESS) -> align.Spec:
    """Alignment of the tiny realignment, without calibration."""
    _, records, policy, logps = start
    fields = {"records": records, "reference": logps, "start": policy, "model": TINY, "text": TEXT}
    return align.Spec(**fields, calibration=None, align=config, execution=execution)


def prepare(spec: align.Spec, store: Store) -> training_data.Spec:
    """Compute the training data that ``spec`` reads."""
    data = spec.preparation()["data"]
    execute(data, training_data.run, store)
    assert isinstance(data, training_data.Spec)
    return data


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Of the tests of faults in scoring."""
    from tests.tasks.scoring import make_world

    with one_thread():
        return make_world(tmp_path_factory.mktemp("scoring"))


@pytest.fixture
def store(world: World, tmp_path: Path) -> Iterator[Store]:
    """A copy of ``world``'s, to calibrate in with one thread, as an actor does."""
    with one_thread():
        yield Store(str(shutil.copytree(world.root, tmp_path / "store")))


@contextmanager
def one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def meet(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[[str], Fault]:
    """Puts a fault at a row of the test's own, the same every time, in the second half."""
    from tasks.stages import calibrate
    from tests.tasks.scoring import Fault, FaultyScorer

    def put(kind: str) -> Fault:
        fault = Fault(kind, random.Random(request.node.name).choice(world.keys[len(world.keys) // 2 :]), tmp_path)
        monkeypatch.setattr(calibrate, "LogitScorer", partial(FaultyScorer, fault))
        return fault

    return put
