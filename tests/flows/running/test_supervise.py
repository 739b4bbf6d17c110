"""The end of a flow run on a server that is not at its best."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED, temporary_settings

from flows.running import supervise as running


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
