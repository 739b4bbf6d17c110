"""The connection to Ray: refused with the next step where no cluster is named or reachable; never started here."""

from __future__ import annotations

import pytest
import ray

from dora_core.config.execution import Execution
from dora_core.errors import ServiceError
from tasks.runtime.cluster import check_fits, ray_session


@pytest.fixture
def unconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    if ray.is_initialized():
        pytest.skip("another test of this process is connected to Ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize("address", [None, ""])
def test_without_a_named_cluster_the_stage_is_refused(address: str | None, unconnected: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ServiceError, match="RAY_ADDRESS is not set") as caught, ray_session():
        pass
    assert caught.value.retryable is False and "execution.default.workers=0" in caught.value.hint
    assert not ray.is_initialized(), "no cluster was started"


@pytest.mark.component
def test_an_outer_connection_stays_and_workers_must_fit_a_node(unconnected: None) -> None:
    ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, logging_level="ERROR")
    try:
        with ray_session():
            check_fits(Execution(cpus_per_worker=2, gpus_per_worker=0))
        assert ray.is_initialized()
        with pytest.raises(ServiceError, match="a worker needs 3 CPUs and 0 GPUs on one node; the cluster has 2 CPUs and 0 GPUs") as caught:
            check_fits(Execution(cpus_per_worker=3, gpus_per_worker=0))
        assert caught.value.retryable is False and "cpus_per_worker" in caught.value.hint
    finally:
        ray.shutdown()
