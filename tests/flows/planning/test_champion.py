"""The registered policies that a new one is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dora_core.errors import ConfigError, ServiceError
from flows.planning import champion
from infra.store.store import Store
from tasks.runtime.stage import StageRef


def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tags: Any, *done: StageRef) -> tuple[list[StageRef], list[str]]:
    store, notes = Store(str(tmp_path / "store")), list[str]()
    for ref in done:
        store.mark_done(store.folder(ref.stage, ref.digest), {"stage": ref.stage, "digest": ref.digest, "seconds": 1.0, "facts": {}})
    monkeypatch.setattr(champion.registry, "alias_tags", tags if callable(tags) else lambda uri, model: tags)
    return champion.champions("sqlite:///mlflow.db", "p", store, notes.append), notes


def ref(name: str) -> StageRef:
    return StageRef(stage="align", digest=name * 64)


def tagged(name: str) -> dict[str, str]:
    return {"dora.stage": "align", "dora.digest": name * 64}


def test_champion_and_the_one_before_in_this_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tags = {"previous": tagged("b"), "champion": tagged("a"), "challenger": tagged("c")}
    assert asked(monkeypatch, tmp_path, tags, ref("a"), ref("b"), ref("c")) == ([ref("a"), ref("b")], [])


def test_a_champion_that_is_not_in_this_store_is_noted_and_a_previous_one_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, notes = asked(monkeypatch, tmp_path, {"champion": tagged("a"), "previous": tagged("b")})
    assert found == [] and len(notes) == 1 and "the champion of p is not compared with: its files are not in " in notes[0]


def test_a_registry_that_is_away_leaves_the_plan_without_a_comparison(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def away(uri: str, model: str) -> Any:
        raise ServiceError("MLflow does not answer")

    assert asked(monkeypatch, tmp_path, away) == ([], ["the champion is not compared with: MLflow does not answer"])


def continued(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tags: Any, *done: StageRef) -> StageRef | None:
    store = Store(str(tmp_path / "store"))
    for one in done:
        store.mark_done(store.folder(one.stage, one.digest), {"stage": one.stage, "digest": one.digest, "seconds": 1.0, "facts": {}})
    monkeypatch.setattr(champion.registry, "alias_tags", tags if callable(tags) else lambda uri, model: tags)
    return champion.champion_to_continue("sqlite:///mlflow.db", "p", store)


def test_a_run_continues_from_the_alias_champion_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tags = {"previous": tagged("b"), "champion": tagged("a")}
    assert continued(monkeypatch, tmp_path, tags, ref("a"), ref("b")) == ref("a")
    assert continued(monkeypatch, tmp_path, {"previous": tagged("b")}) is None


def test_a_start_is_never_left_out_silently(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def away(uri: str, model: str) -> Any:
        raise ServiceError("MLflow does not answer")

    with pytest.raises(ServiceError, match="does not answer"):
        continued(monkeypatch, tmp_path, away)
    with pytest.raises(ConfigError, match="the files of p's champion are not in"):
        continued(monkeypatch, tmp_path, {"champion": tagged("a")}, ref("b"))
