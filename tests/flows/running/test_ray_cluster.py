"""The cluster of a run: given, or a private head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dora_core.config.execution import Execution
from dora_core.errors import ServiceError
from flows.planning.planned_stage import Plan
from flows.running import ray_cluster
from flows.running.ray_cluster import RayCluster
from infra.settings import Settings
from tasks.stages import batch
from tests.flows.running.planned import plan_of


class Head:
    """In place of a Ray head."""

    started: ClassVar[list[tuple[Path, int]]] = []
    is_alive = True

    def __init__(self, folder: Path):
        self.folder, self.dashboard_url, self.stopped = folder, "http://127.0.0.1:1", False

    @classmethod
    def start(cls, folder: Path, *, num_cpus: int) -> Head:
        cls.started.append((folder, num_cpus))
        return cls(folder)

    @staticmethod
    def stop_orphans(folder: Path) -> None: ...

    def alive(self) -> bool:
        return Head.is_alive

    def environment(self) -> dict[str, str]:
        return {}

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RayCluster:
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    monkeypatch.setattr(ray_cluster, "RayHead", Head)
    monkeypatch.setattr(Head, "started", [])
    monkeypatch.setattr(Head, "is_alive", True)
    settings = Settings()
    return RayCluster(settings, replace(settings.effective(), ray_dashboard=None))


def jobs_of(workers: int, cpus: float) -> Plan:
    """A plan with one job stage to run."""
    plan = plan_of(1)
    execution = Execution(workers=workers, cpus_per_worker=cpus)
    spec = batch.Spec(stages=[plan.stages[0].spec.ref()], execution=execution)
    return replace(plan, stages=(replace(plan.stages[0], spec=spec),))


def test_a_plan_without_jobs_starts_nothing(own: RayCluster) -> None:
    own.warm_up("p-1", plan_of(1, 2))
    own.close()
    assert Head.started == []


def test_the_own_head_offers_what_the_widest_stage_asks_for_and_is_stopped(own: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    own.warm_up("p-1", jobs_of(3, 1.5))
    head: Any = own._head.result() if own._head else None
    assert own.is_own and own.jobs() is not None
    own.close()
    assert [(folder.name, cpus) for folder, cpus in Head.started] == [("p-1", 5)] and head.stopped
    own.close()


def test_a_head_that_died_is_started_again(own: RayCluster) -> None:
    own.warm_up("p-1", jobs_of(1, 1.0))
    own.jobs()
    Head.is_alive = False
    own.jobs()
    assert len(Head.started) == 2


def test_a_head_that_does_not_start_raises_where_it_is_needed_and_not_at_the_end(own: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path, *, num_cpus: int) -> Head:
        raise ServiceError("no memory")

    monkeypatch.setattr(Head, "start", refuse)
    own.warm_up("p-1", jobs_of(1, 1.0))
    with pytest.raises(ServiceError, match="no memory"):
        own.jobs()
    own.close()


def test_a_given_cluster_is_used_as_it_is(own: RayCluster) -> None:
    given = RayCluster(own.settings, replace(own.places, ray_dashboard="http://127.0.0.1:8265"))
    given.warm_up("p-1", jobs_of(1, 1.0))
    assert not given.is_own and given.jobs() is not None and Head.started == []
