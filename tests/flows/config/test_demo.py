"""The demo's configuration."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dora_core.config.judging import GoldJudge
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
    judge = config.compare.judge
    assert isinstance(judge, GoldJudge) and judge.testbed.one_source_per_record, "else hardly a record is golden as a whole"
    assert len(pq.read_table(folder / "data.parquet")) == judge.testbed.prompts and config.evaluate.twins == [
        "erm",
        "golden_only",
        "golden_only_epochs",
    ]
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert demo.demo_config(folder) == config
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written


def test_with_rounds_it_is_a_self_training_on_the_same_data(folder: Path) -> None:
    config = demo.demo_config(folder, 2)
    assert isinstance(config, SelfTrainConfig) and config.rounds.rounds == 2 and not config.evaluate.twins
    assert config.data == demo.demo_config(folder).data
