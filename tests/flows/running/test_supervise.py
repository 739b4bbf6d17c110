"""The end of a flow run on a server that is not at its best."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED, temporary_settings

from dora_core.errors import DataError
from flows.run_record import ErrorRecord, RunRecord, StageRecord
from flows.running import supervise as running
from infra.store.store import Store
from tests.tasks.facts import evaluation


class Busy(BaseHTTPRequestHandler):
    """A Prefect server whose database is locked for a moment: 500, then no task run that is open."""

    asked = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        Busy.asked += 1
        body = json.dumps([]).encode()
        self.send_response(500 if Busy.asked == 1 else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.fault(9)
def test_a_server_that_is_busy_at_the_end_does_not_fail_a_run_that_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "this_run", SimpleNamespace(id=str(uuid4())))
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = {PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api", PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}
        with temporary_settings(address), running.recorded():
            pass
        server.shutdown()
    assert Busy.asked == 2


def test_a_reason_with_braces_is_a_name_for_prefect() -> None:
    reason = "align · runs: align.optimization.lora none → {'rank': 4}"
    assert running.literally(reason).format(stage=None) == reason


def finished_run(store: Store, **changes: Any) -> RunRecord:
    """A run with an evaluation in the store."""
    digest, facts = "e" * 64, evaluation() | {"summary": "win rate against the start 0.640 [0.580, 0.700]; better than plain training"}
    content = {"stage": "evaluate", "digest": digest, "facts": facts, "spec": {}, "inputs": {}, "rows": 1, "metrics": {}, "seconds": 1.0}
    store.mark_done(store.folder("evaluate", digest), content)  # type: ignore[arg-type]
    stages = [StageRecord(stage="evaluate", label="evaluate", digest=digest, state="ran")]
    run = RunRecord(run_id="p-1", project="p", started=0.0, status="completed", stages=stages, decision="promoted")
    return run.evolve(**changes)


def test_the_message_of_a_state_has_the_verdict_and_the_number(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    said = running.outcome(store, finished_run(store))
    assert said == "promoted: win rate against the start 0.640 [0.580, 0.700]; 1 stage ran, 0 cached"
    stopped = finished_run(store, status="stopped", error=ErrorRecord(message="KL is 60"))
    assert running.outcome(store, stopped) == "stopped: KL is 60"
    assert running.outcome(store, finished_run(store, decision="unchanged")) == "unchanged; 1 stage ran, 0 cached"


def test_a_failure_is_one_sentence_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    tags: list[tuple[str, str | None]] = []
    monkeypatch.setattr(running, "tag_run", lambda project, decision: tags.append((project, decision)))
    with disable_run_logger():
        error = DataError("row 3 is bad", hint="drop it")
        state = running.failed(error, "p")
        bug = running.failed(KeyError("x"), "p")
    assert state.message == "row 3 is bad (drop it)" and state.name == "Failed" and tags == [("p", "failed")] * 2
    with pytest.raises(DataError, match="row 3"):
        state.result()
    assert bug.message == "KeyError: 'x'"


def test_a_run_is_tagged_with_project_and_decision_and_keeps_other_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}

    class Client:
        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None: ...

        def update_flow_run(self, run_id: Any, tags: list[str]) -> None:
            sent[str(run_id)] = tags

    here = SimpleNamespace(id=str(uuid4()), tags=["night", "decision:refused"])
    monkeypatch.setattr(running, "this_run", here)
    monkeypatch.setattr(running, "get_client", lambda sync_client: Client())
    running.tag_run("p", "promoted")
    assert sent == {here.id: ["decision:promoted", "night", "project:p"]}
