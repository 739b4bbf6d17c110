"""An OpenAI-compatible server on loopback: real HTTP, a thread per connection, scripted answers.

    with EndpointServer(lambda body: body["messages"][-1]["content"].upper()) as server:
        Endpoint(url=server.url)

The script is called with the request's body and returns a text or a :class:`Reply`; an exception closes the connection without an answer.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

MODEL = "served"
Script = Callable[[dict[str, Any]], "Reply | str"]


@dataclass
class Reply:
    """A status other than 200 sends ``text`` as the error's message. ``tokens`` None: no usage is reported."""

    text: str | None
    status: int = 200
    finish_reason: str = "stop"
    tokens: int | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        if self.status != 200:
            return {"error": {"message": self.text}}
        message = {"role": "assistant", "content": self.text}
        answer: dict[str, Any] = {"choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}]}
        return answer if self.tokens is None else answer | {"usage": {"completion_tokens": self.tokens}}


class EndpointServer:
    """Listens from construction to :meth:`close`.

    Attributes:
        bodies: bodies of the chat requests, in the order of arrival. authorizations: their header, None if absent.
        most_at_once: largest number of concurrent chat requests.
    """

    def __init__(self, script: Script, *, models: tuple[str, ...] = (MODEL,), port: int = 0):
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.most_at_once = 0
        self._script, self._models = script, models
        self._lock, self._under_way = threading.Lock(), 0
        self._connections: set[socket.socket] = set()
        self._http = _Listener(self, port)
        self.port: int = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop as if the process were killed: open connections break too, and the port is free."""
        self._http.shutdown()
        self._http.server_close()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):  # the client has closed it
                    connection.shutdown(socket.SHUT_RDWR)

    def answer(self, body: dict[str, Any], authorization: str | None) -> Reply:
        with self._lock:
            self.bodies.append(body)
            self.authorizations.append(authorization)
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            reply = self._script(body)
        finally:
            with self._lock:
                self._under_way -= 1
        return Reply(reply) if isinstance(reply, str) else reply

    def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in self._models]}


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, server: EndpointServer, port: int):
        self.endpoint = server
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.endpoint._lock:
            self.endpoint._connections.add(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: a script that raises, or a client that has disconnected, is part of a test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open, as real servers keep them
    server: _Listener

    def do_GET(self) -> None:
        found = self.path == "/v1/models"
        self._send(200 if found else 404, self.server.endpoint.models() if found else {"detail": "Not Found"}, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            self._send(404, {"detail": "Not Found"}, {})
            return
        reply = self.server.endpoint.answer(body, self.headers.get("Authorization"))
        self._send(reply.status, reply.json(), reply.headers)

    def _send(self, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Type": "application/json", "Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass
