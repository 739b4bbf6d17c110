"""Parameters of a Ray head that its command line does not offer."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import pytest

from infra import ray_start
from infra.ray_start import HOOK, patient, prepare, waits


def test_the_hook_is_where_ray_looks_for_it() -> None:
    module, _, name = HOOK.rpartition(".")
    assert getattr(import_module(module), name) is prepare


@pytest.mark.parametrize(("wanted", "port"), [(None, None), ("0", None), ("1", 10001)])
def test_the_client_server_is_left_out_unless_someone_wants_it(
    wanted: str | None, port: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private import services

    monkeypatch.setattr(services, "get_node", services.get_node)  # the hook changes it, in the head's own process
    monkeypatch.delenv(ray_start.CLIENT_SERVER, raising=False)
    if wanted is not None:
        monkeypatch.setenv(ray_start.CLIENT_SERVER, wanted)
    parameters = SimpleNamespace(ray_client_server_port=10001)
    prepare(parameters, head=True)
    assert parameters.ray_client_server_port == port
    worker = SimpleNamespace(ray_client_server_port=10001)
    prepare(worker, head=False)
    assert worker.ray_client_server_port == 10001


def test_a_raylet_that_registers_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_start, "PAUSE_SECONDS", 0.001)
    late = [RuntimeError("no node"), RuntimeError("no node"), {"node_id": "a"}]

    def get_node(address: str, node: str) -> dict[str, str]:
        found = late.pop(0)
        if isinstance(found, RuntimeError):
            raise found
        return found

    assert patient(get_node, 60.0)("127.0.0.1:1", "a") == {"node_id": "a"} and not late
    late.append(RuntimeError("no node"))
    with pytest.raises(RuntimeError, match="no node"):
        patient(get_node, 0.0)("127.0.0.1:1", "a")


def test_every_wait_of_ray_is_as_long_but_the_one_for_workers() -> None:
    waiting = waits(720.0)
    assert waiting["RAY_START_HOOK"] == HOOK and waiting["RAY_worker_register_timeout_seconds"] == "300"
    assert waiting["RAY_agent_register_timeout_ms"] == "720000" and waiting["RAY_DASHBOARD_STARTUP_TIMEOUT_S"] == "720"
