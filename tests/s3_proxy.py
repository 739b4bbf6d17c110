"""A proxy on loopback before an S3 server that fails in the ways of real ones: 503, cut connections, old listings, none at all.

Every request is counted by method. The faults are set as attributes, or with :meth:`S3Proxy.next`, while clients are using it.
"""

from __future__ import annotations

import http.client
import re
import socket
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from tests.s3_server import S3Server

SLOW_DOWN = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
HOP_BY_HOP = {"connection", "transfer-encoding", "expect", "host", "keep-alive"}
Failure = Literal["slow_down", "cut_request", "cut_answer"]


@dataclass
class S3Proxy:
    """A running proxy.

    Attributes:
        is_away: every connection is closed without an answer.
        is_stale: listings are answered as they were when this was set.
        failed: failures made, by kind and method.
    """

    server: S3Server
    is_away: bool = False
    is_stale: bool = False
    failed: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    _failures: deque[tuple[Failure, str]] = field(default_factory=deque)
    _listings: dict[str, tuple[int, list[tuple[str, str]], bytes]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, failure: Failure, method: str = "", times: int = 1) -> None:
        """Make the next requests fail: all those of a method, or of any."""
        self._failures += [(failure, method)] * times

    def failure(self, method: str) -> Failure | None:
        """Take the failure of a request."""
        with self._lock:
            self.requests[method] += 1
            if self._failures and self._failures[0][1] in ("", method):
                kind, _ = self._failures.popleft()
                self.failed[f"{kind} {method}"] += 1
                return kind
        return None

    def forget_listings(self) -> None:
        """Listings that are made from now on are the old ones of :attr:`is_stale`."""
        self._listings.clear()

    def listing(self, path: str, answer: tuple[int, list[tuple[str, str]], bytes]) -> tuple[int, list[tuple[str, str]], bytes]:
        """Keep a fresh listing, or return the kept one while listings are stale: an empty one where none was kept."""
        if not self.is_stale:
            self._listings[path] = answer
            return answer
        if path in self._listings:
            return self._listings[path]
        status, headers, body = answer
        body = re.sub(rb"<(Contents|CommonPrefixes)>.*?</\1>", b"", body, flags=re.S)
        return status, headers, re.sub(rb"<KeyCount>\d+</KeyCount>", b"<KeyCount>0</KeyCount>", body)


@contextmanager
def s3_proxy(server: S3Server) -> Iterator[S3Proxy]:
    """Run a proxy; clients use ``proxy.server.environment``."""
    upstream = urlsplit(server.environment["AWS_ENDPOINT_URL"])
    host, port = upstream.hostname or "", upstream.port or 80

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def handle_expect_100(self) -> bool:
            return True if proxy.is_away else super().handle_expect_100()

        def do_any(self) -> None:
            failure = proxy.failure(self.command)
            if proxy.is_away or failure == "cut_request":
                self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0)))  # a part of the upload
                return self._cut()
            body = self._body()
            if failure == "slow_down":
                return self._answer((503, [("Content-Type", "application/xml")], SLOW_DOWN))
            answer = self._forward(body)
            if self.command == "GET" and "list-type" in parse_qs(urlsplit(self.path).query, keep_blank_values=True):
                answer = proxy.listing(self.path, answer)
            if failure == "cut_answer":
                return self._answer(answer, cut=True)
            return self._answer(answer)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_any

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(chunks)

        def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(host, port, timeout=30)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP | {"content-length"}}
            headers |= {"Content-Length": str(len(body)), "Host": f"{host}:{port}"}
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            content = response.read()
            connection.close()
            return response.status, [h for h in response.getheaders() if h[0].lower() not in HOP_BY_HOP], content

        def _answer(self, answer: tuple[int, list[tuple[str, str]], bytes], cut: bool = False) -> None:
            status, headers, content = answer
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() != "content-length":
                    self.send_header(name, value)
            kept = [value for name, value in headers if name.lower() == "content-length"]
            self.send_header("Content-Length", kept[0] if self.command == "HEAD" and kept else str(len(content)))
            self.end_headers()
            if cut:
                self.wfile.write(content[: len(content) // 2])
                return self._cut()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _cut(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Do not print connections that were cut."""

    listener = Server(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{listener.server_address[1]}"
    proxy = S3Proxy(replace(server, environment=server.environment | {"AWS_ENDPOINT_URL": address}))
    thread = threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
