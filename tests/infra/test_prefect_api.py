"""The Prefect API of a command: servers that do not answer or refuse, and processes that a killed command left.

The API itself starts in the fixture ``api`` of ``tests/flows/prefect_server.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dora_core.errors import ServiceError
from infra.ports import free_port
from infra.prefect_api import _end_orphans, _Record, _wait, check_answers
from infra.processes import RecordedProcess, spawn, terminate_tree
from tests.infra.tracking.refusing import refusing


def test_a_server_that_is_not_there() -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    with pytest.raises(ServiceError, match=f"Prefect at {url} does not answer: ConnectError") as caught:
        check_answers(url)
    assert caught.value.retryable and "dora up" in caught.value.hint and "DORA_PREFECT_API_URL" in caught.value.hint


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_a_password(status: int) -> None:
    with refusing(status) as url, pytest.raises(ServiceError, match=rf"refuses us \({status}\)") as caught:
        check_answers(f"{url}/api")
    assert not caught.value.retryable and "PREFECT_API_AUTH_STRING" in caught.value.hint


@pytest.mark.parametrize(("status", "again"), [(404, False), (500, True)])
def test_another_answer_is_shown(status: int, again: bool) -> None:
    with refusing(status) as url, pytest.raises(ServiceError, match=f"answered {status}") as caught:
        check_answers(f"{url}/api")
    assert caught.value.retryable is again


def test_an_api_that_ends_while_starting_shows_its_log(tmp_path: Path) -> None:
    api = spawn("prefect api", ["bash", "-c", "echo the port is taken; exit 3"], log=tmp_path / "api.log")
    with pytest.raises(ServiceError, match="the Prefect API ended while starting") as caught:
        _wait(f"http://127.0.0.1:{free_port()}/api", api)
    assert "the port is taken" in caught.value.hint and not caught.value.retryable


def record(folder: Path, name: str, *, owner: RecordedProcess) -> tuple[Path, RecordedProcess]:
    api = spawn(name, ["sleep", "60"], log=folder / f"{name}.log")
    path = folder / f"{name}.json"
    path.write_text(_Record(api=api, owner=owner).model_dump_json())
    return path, api


def test_only_the_api_of_a_dead_command_is_ended(tmp_path: Path) -> None:
    me = RecordedProcess.current()
    dead, left_over = record(tmp_path, "dead", owner=me.model_copy(update={"boot": "another"}))
    live, in_use = record(tmp_path, "live", owner=me)
    try:
        _end_orphans(tmp_path)
        assert not left_over.alive() and not dead.exists()
        assert in_use.alive() and live.exists()
    finally:
        terminate_tree([in_use, left_over], grace=1.0)
    _end_orphans(tmp_path / "nothing")
