"""Which twins a plan has, and the data that cannot have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dora_core.errors import ConfigError
from dora_core.testbed.mixture import Testbed, TestbedConfig
from flows.config.models import RealignConfig
from flows.planning import twins
from flows.planning.twins import check_twins, wanted_twins


def config(path: Path, **sections: Any) -> RealignConfig:
    given = {"project": "p", "data": {"train": [{"path": str(path)}], "golden_sources": ["human"]}, "evaluate": {"twins": ["golden_only"]}}
    return RealignConfig.model_validate(given | sections)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Testbed(TestbedConfig(prompts=20)).write(tmp_path_factory.mktemp("data") / "mixture.parquet")


def test_erm_is_not_its_own_twin(mixture: Path) -> None:
    evaluate = {"twins": ["erm", "golden_only"]}
    assert wanted_twins(config(mixture, evaluate=evaluate)) == ["erm", "golden_only"]
    assert wanted_twins(config(mixture, evaluate=evaluate, align={"objective": {"name": "erm"}})) == ["golden_only"]


@pytest.mark.parametrize(
    ("wanted", "sources", "message"),
    [
        (["golden_only", "golden_only_epochs"], ["a-bot", "(unknown)"], "golden_only, golden_only_epochs would train .* of golden sources"),
        (["synthetic_only"], ["human"], "synthetic_only would train on records of synthetic sources, .* sources: human"),
        (["golden_only"], [], "sources: none"),
    ],
)
def test_data_without_such_a_source_are_refused(mixture: Path, wanted: list[str], sources: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_twins(config(mixture, evaluate={"twins": wanted}), sources)
    check_twins(config(mixture, evaluate={"twins": wanted}), ["human", "a-bot"])
    check_twins(config(mixture, evaluate={"twins": ["erm"]}), sources)
    named = {"data": {"train": [{"path": str(mixture), "carry": ["labeller"]}]}, "trust": {"labeller": "labeller"}}
    check_twins(config(mixture, evaluate={"twins": wanted}, **named), sources)  # the labellers are in the rows


def test_data_that_were_not_read_are_judged_by_their_first_rows_if_these_are_all(mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_twins(config(mixture), None)
    untrusted = config(mixture, data={"train": [{"path": str(mixture)}], "golden_sources": ["annotator"]})
    with pytest.raises(ConfigError, match="sources: human, repeater-lm, sycophant-lm, verbose-lm"):
        check_twins(untrusted, None)
    monkeypatch.setattr(twins, "FIRST_ROWS", 5)
    check_twins(untrusted, None)
