"""The connection to Ray: refused with the next step where no cluster is named or reachable; never started here."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from dora_core.config.execution import Execution
from dora_core.errors import ServiceError
from infra.store.journal import JournalWriter
from infra.store.store import Store
from tasks.runtime.cluster import check_fits, ray_session
from tasks.runtime.shards import run_shards
from tasks.runtime.stage import StageContext
from tasks.runtime.workers import Worker


class Copier(Worker):
    """Returns its rows."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows


@pytest.mark.parametrize("address", [None, ""])
def test_without_a_named_cluster_the_stage_is_refused(address: str | None, unconnected: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ServiceError, match="RAY_ADDRESS is not set") as caught, ray_session():
        pass
    assert caught.value.retryable is False and "execution.default.workers=0" in caught.value.hint
    assert not ray.is_initialized(), "no cluster was started"


def test_without_a_cluster_shards_are_refused_with_what_to_do(unconnected: None, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    stage = store.folder("calibrate", "0" * 64)
    context, rows = StageContext(store, stage, JournalWriter(stage), logging.getLogger("test")), pa.table({"key": ["row 0"]})
    with pytest.raises(ServiceError, match="RAY_ADDRESS") as caught:
        run_shards(context, rows, name="copy", worker=Copier, execution=Execution(workers=1), unit="rows")
    assert "workers=0" in caught.value.hint and not caught.value.retryable


@pytest.mark.component
def test_an_outer_connection_stays_and_workers_must_fit_a_node(ray_cluster: None) -> None:
    with ray_session():
        check_fits(Execution(cpus_per_worker=2, gpus_per_worker=0))
    assert ray.is_initialized()
    with pytest.raises(ServiceError, match="a worker needs 3 CPUs and 0 GPUs on one node; the cluster has 2 CPUs and 0 GPUs") as caught:
        check_fits(Execution(cpus_per_worker=3, gpus_per_worker=0))
    assert caught.value.retryable is False and "cpus_per_worker" in caught.value.hint
