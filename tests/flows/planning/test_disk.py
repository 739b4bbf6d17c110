"""Trainings whose models do not fit on the disk are refused by the plan; what is not known is left to the run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pyarrow.fs as pafs
import pytest

from dora_core.errors import ConfigError
from dora_core.training.memory_estimate import ModelSize
from flows.planning.disk import refuse_full_disk
from infra.store.store import Store
from tests.dora_core.models.small_models import saved
from tests.flows.planning.test_memory import config
from tests.flows.small_realign import plan_of, small_realign

TWINS = ["sft", "align", "evaluate", "align"]
"""Stages of a run with a twin; the supervised start is off in the configuration of these tests."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "not" / "yet" / "there"))


def test_a_model_for_each_training_has_to_fit(store: Store, tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    size = ModelSize.of_folder(folder)
    assert size is not None
    models = 2 * size.parameters * size.stored_bytes
    refuse_full_disk(config(folder), TWINS, store, free=models)
    with pytest.raises(ConfigError, match=r"the 2 models that this run trains take .* GB are free on the disk of ") as error:
        refuse_full_disk(config(folder), TWINS, store, free=models - 1)
    assert "evaluate.twins" in error.value.hint and str(tmp_path) in error.value.message
    refuse_full_disk(config(folder), ["evaluate"], store, free=0)


def test_adapters_are_kept_beside_the_merged_model(store: Store, tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    size = ModelSize.of_folder(folder)
    assert size is not None
    adapters, model = config(folder, lora={"rank": 2, "result": "adapter"}), size.parameters * size.stored_bytes
    refuse_full_disk(adapters, ["align"], store, free=model)
    with pytest.raises(ConfigError):
        refuse_full_disk(adapters, ["align"], store, free=model - 1)


def test_what_is_not_known_is_not_refused(store: Store, tmp_path: Path) -> None:
    refuse_full_disk(config(tmp_path / "no-folder"), TWINS, store, free=0)


def test_what_other_machines_hold_is_not_refused(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket, and a Ray elsewhere; with either of them here, models come to a disk that is known here."""
    monkeypatch.setattr("flows.planning.disk.shutil.disk_usage", lambda place: SimpleNamespace(free=0))
    folder = saved("llama", tmp_path)
    store.remote = (pafs.LocalFileSystem(), "bucket")
    with pytest.raises(ConfigError):
        refuse_full_disk(config(folder), TWINS, store)
    monkeypatch.setenv("DORA_RAY_ADDRESS", "http://10.0.0.1:8265")
    refuse_full_disk(config(folder), TWINS, store)
    store.remote = None
    with pytest.raises(ConfigError):
        refuse_full_disk(config(folder), TWINS, store)


def test_the_plan_counts_a_model_for_each_twin(tmp_path: Path, mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr("flows.planning.plan.refuse_full_disk", lambda config, running, store: asked.append(running))
    plan_of(tmp_path, small_realign(mixture), "evaluate.twins=[erm, golden_only]")
    assert asked[0].count("align") == 3


def test_the_disk_is_that_of_the_store(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    monkeypatch.setattr("flows.planning.disk.shutil.disk_usage", lambda place: places.append(place) or SimpleNamespace(free=0))
    with pytest.raises(ConfigError, match="models that this run trains"):
        refuse_full_disk(config(saved("llama", tmp_path)), TWINS, store)
    assert places == [store.local_root]
