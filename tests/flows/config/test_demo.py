"""The demo's configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.config import demo
from flows.config.models import SelfTrainConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def test_a_realignment_on_generated_data_that_is_written_once(folder: Path) -> None:
    config = demo.demo_config(folder)
    assert config.project == "demo" and not isinstance(config, SelfTrainConfig)
    sources = [*config.data.train, *config.data.golden]
    assert [Path(source.path) for source in sources] == [folder / "data.parquet", folder / "golden.parquet"]
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert demo.demo_config(folder) == config
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written


def test_with_rounds_it_is_a_self_training_on_the_same_data(folder: Path) -> None:
    config = demo.demo_config(folder, 2)
    assert isinstance(config, SelfTrainConfig) and config.rounds.rounds == 2 and not config.evaluate.twins
    assert config.data == demo.demo_config(folder).data
