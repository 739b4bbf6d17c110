"""Rules between the sections of a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from dora_core.errors import ConfigError
from flows.config.loading import load_config
from flows.config.models import RealignConfig

DATA = "data: {train: [{path: org/data}]}\n"


def test_a_stages_section_says_what_differs_from_the_default(tmp_path: Path) -> None:
    sections = "default: {workers: 8, gpus_per_worker: 1}, align: {strategy: fsdp}, sft: {workers: 1}"
    (tmp_path / "c.yaml").write_text(f"{DATA}execution: {{{sections}}}")
    config = load_config(tmp_path / "c.yaml", ["execution.reward.micro_batch_tokens=2048"])
    of = config.execution.of
    assert (of("align").workers, of("align").gpus_per_worker, of("align").strategy) == (8, 1, "fsdp")
    assert (of("sft").workers, of("sft").gpus_per_worker, of("sft").strategy) == (1, 1, "ddp")
    assert (of("reward").workers, of("reward").micro_batch_tokens) == (8, 2048)
    assert of("classify") == config.execution.default
    assert RealignConfig.model_validate(config.model_dump(mode="json")).execution == config.execution
    (tmp_path / "c.yaml").write_text(DATA + "execution: {default: {workers: -1}, align: {strategy: fsdp}}")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml")
    assert "execution.default.workers" in caught.value.message and "execution.align" not in caught.value.message, "told once"


def test_a_stage_without_a_section_has_the_default(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(DATA + "execution: {default: {workers: 5}}")
    assert load_config(tmp_path / "c.yaml").execution.of("ingest").workers == 5


def test_random_weights_need_a_supervised_start(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(DATA + "policy: {source: tiny}\nsft: {enabled: false}")
    with pytest.raises(ConfigError, match="needs a supervised start"):
        load_config(tmp_path / "c.yaml")
