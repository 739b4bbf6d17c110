"""Registered names in a configuration: the folder of the version that they mean now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dora_core.config.method import ModelConfig
from flows.config.models import RealignConfig
from flows.planning.registered import resolved, resolved_model
from flows.planning.specs import pinned
from infra.store.store import sha256_of
from infra.tracking.model_registry import RegistryError
from tests.flows.registered_demo import register_demo


def config(**sections: Any) -> RealignConfig:
    return RealignConfig.model_validate({"project": "p", "data": {"train": [{"path": "x"}]}} | sections)


@pytest.fixture
def folder(mlflow_sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DORA_STORE", raising=False)
    monkeypatch.setenv("DORA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DORA_MLFLOW_URI", mlflow_sqlite)
    return register_demo(mlflow_sqlite, tmp_path / "home" / "store").local(f"align/{sha256_of('align')}/model")


def test_policy_and_judge_may_be_registered_models(folder: Path) -> None:
    judge = {"kind": "reward_model", "model": {"source": "models:/demo/1"}}
    given = config(policy={"source": "models:/demo@champion"}, compare={"judge": judge})
    found = resolved(given)
    assert found.policy.source == str(folder)
    assert found.compare is not None and found.compare.judge.model.source == str(folder)  # type: ignore[union-attr]
    assert pinned(given).policy.content is not None, "the digest is that of the files"


def test_other_names_stay_as_they_are(folder: Path) -> None:
    given = config(policy={"source": str(folder)})
    assert resolved(given) is given
    assert resolved_model(ModelConfig(source="lab/model")) == ModelConfig(source="lab/model")
    with pytest.raises(RegistryError, match="no version 7"):
        resolved_model(ModelConfig(source="models:/demo/7"))
