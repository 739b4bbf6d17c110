"""Trainings that cannot fit are refused by the plan, with the arithmetic; what is not known is left to the workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dora_core.errors import ConfigError
from dora_core.training.memory_estimate import ModelSize
from flows.config.models import RealignConfig
from flows.planning.memory import GIB, refuse_too_large
from tests.dora_core.models.small_models import saved

RUNS = {"sft", "align"}


def config(folder: Path, **align: Any) -> RealignConfig:
    return RealignConfig.model_validate(
        {
            "data": {"train": [{"path": "pairs.jsonl"}]},
            "policy": {"source": str(folder)},
            "sft": {"enabled": False},
            "execution": {"align": {"workers": 4} | align.pop("execution", {})},
            "align": {"optimization": align},
        }
    )


def test_a_training_that_cannot_fit_is_refused(tmp_path: Path) -> None:
    """Four workers with 16 bytes a parameter each; shards, and adapters, need less."""
    folder = saved("llama", tmp_path)
    size = ModelSize.of_folder(folder)
    assert size is not None
    whole = 16 * size.parameters
    refuse_too_large(config(folder), RUNS, machine=4 * whole)
    with pytest.raises(ConfigError, match=r"align of 0\.0 billion parameters needs .* 4 workers of weights") as error:
        refuse_too_large(config(folder), RUNS, machine=4 * whole - 1)
    assert "strategy fsdp" in error.value.hint
    refuse_too_large(config(folder), {"evaluate"}, machine=1)
    refuse_too_large(config(folder, execution={"strategy": "fsdp"}), RUNS, machine=whole)
    with pytest.raises(ConfigError):
        refuse_too_large(config(folder, execution={"strategy": "fsdp"}), RUNS, machine=whole - 1)
    refuse_too_large(config(folder, lora={"rank": 1}), RUNS, machine=2 * whole)


def test_on_gpus_only_what_is_kept_off_them_counts(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    gpus: dict[str, Any] = {"gpus_per_worker": 1, "strategy": "fsdp"}
    refuse_too_large(config(folder, execution=gpus), RUNS, machine=1)
    with pytest.raises(ConfigError, match="kept off their GPUs"):
        refuse_too_large(config(folder, execution=gpus | {"cpu_offload": True}), RUNS, machine=1)


def test_what_is_not_known_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_too_large(config(tmp_path / "no-folder"), RUNS, machine=1)
    monkeypatch.setenv("DORA_RAY_ADDRESS", "http://10.0.0.1:8265")
    monkeypatch.setattr("psutil.virtual_memory", lambda: pytest.fail("the machine of that Ray is another one"))
    refuse_too_large(config(saved("llama", tmp_path)), RUNS)


def test_this_machine_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Machine:
        total = 1

    monkeypatch.delenv("DORA_RAY_ADDRESS", raising=False)
    monkeypatch.setattr("psutil.virtual_memory", Machine)
    with pytest.raises(ConfigError, match="of host memory on this machine"):
        refuse_too_large(config(saved("llama", tmp_path)), RUNS)
    assert GIB == 1024**3
