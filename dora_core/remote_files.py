"""Remote file systems (``s3://…``, ``gs://…``) whose operations outlast an outage of their server.

One operation is repeated while its error is transient (no connection, a cut one, HTTP 429 and 5xx: *SlowDown*, *ServiceUnavailable*), for
:data:`PATIENCE_SECONDS`, with a notice when an outage begins and one when it ends. Errors that the next attempt would repeat (a missing
bucket, refused credentials) are raised at once. After an outage that was longer, :class:`Unreachable` is raised, and every further
operation on that bucket gives up after :data:`GIVEN_UP_SECONDS`, so that a run can end and report.

Reads and writes within an open file are repeated by the client of S3 itself (``retry_strategy``), part by part, so an upload continues
where its connection was cut; the object appears when all of it has arrived. Its requests pause 25 ms · 2ⁿ before attempt n.
``pyarrow`` forgets a retry strategy when a file system is pickled, so workers of Ray get these through :class:`_Enduring`, which is
pickled as its URI, without credentials.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow.fs as pafs

from dora_core.errors import StoreError

PATIENCE_SECONDS = 180.0
GIVEN_UP_SECONDS = 10.0
NOTICE_SECONDS = 15.0
"""Time without an answer after which an outage is reported although the client of S3 is still repeating its request."""
LONGEST_PAUSE = 5.0
ATTEMPTS, STREAM_ATTEMPTS = 5, 13
"""Attempts of S3's client at one request of an operation (.8 s of pauses) and at one part of an open file (205 s)."""
READ_ATTEMPTS = 5
"""Times an object that changes while it is read is opened."""
CONNECT_SECONDS, REQUEST_SECONDS = 5.0, 30.0
"""Time-outs of S3's client; its own limit of 3 s without a byte is too short for a busy server that completes a large upload."""

_TRANSIENT = re.compile(
    r"NETWORK_CONNECTION|SLOW_?DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|REQUEST_TIMEOUT|HTTP status (5\d\d|429|408)"
    r"|UNAVAILABLE|DEADLINE_EXCEEDED|[Tt]imed? ?out|[Cc]onnection (refused|reset)|curlCode",
)
_PERMANENT = re.compile(r"curlCode: (35|51|58|60|77)\b|HTTP status 501")
"""Certificates that are refused, and operations that the server does not have."""

log = logging.getLogger("dora.store")
T = TypeVar("T")


class Unreachable(StoreError, OSError):
    """A server that did not answer for too long; an ``OSError`` too, for readers that ignore one."""


@dataclass(frozen=True)
class Outage:
    """An outage that this process has outlasted. ``place``: ``s3://bucket``."""

    place: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.place} did not answer for {self.seconds:.0f} s, which was waited out"


outages: list[Outage] = []
"""Outages of this process that are over, for the warnings of a stage."""
_lock = threading.Lock()
_away: dict[str, float] = {}
"""Monotonic time of the first unanswered request, by place."""
_given_up: set[str] = set()


def open_filesystem(uri: str, *, in_background: bool = True) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a URI and the path in it; remote ones as the module docstring describes.

    Args:
        in_background: upload several parts of a file at a time, in the threads of pyarrow. False for folders of files that are uploaded in
            these threads, which would then wait for each other for ever (apache/arrow#32372).

    Raises:
        OSError, ValueError, pyarrow.ArrowException: as of ``pyarrow.fs.FileSystem.from_uri``.
    """
    if urllib.parse.urlsplit(uri).scheme in ("", "file"):
        filesystem, path = pafs.FileSystem.from_uri(uri)
        return filesystem, path
    handler = _Enduring(uri, in_background)
    return pafs.PyFileSystem(handler), handler.path


def ray_storage(place: str) -> tuple[pafs.FileSystem | None, str]:
    """File system and path for the results of Ray Train or Ray Tune: None on this machine. Elsewhere Ray's own gives up after seconds."""
    if urllib.parse.urlsplit(place).scheme in ("", "file"):
        return None, place
    return open_filesystem(place, in_background=False)


def read_object(filesystem: pafs.FileSystem, path: str) -> bytes:
    """Read a whole small object that others may delete or replace at any time.

    S3 is asked for as many bytes as the object had when it was opened. If it is gone by then, the client answers with INTERNAL_FAILURE
    ("Failed to flush response stream"), since the error of the server is longer than that; the object is opened again, to tell.

    Raises:
        FileNotFoundError: there is none. OSError: it cannot be read.
    """
    attempt = 0
    while True:
        attempt += 1
        with filesystem.open_input_stream(path) as stream:
            try:
                return bytes(stream.read())
            except OSError:
                if attempt == READ_ATTEMPTS:
                    raise


def is_transient(error: OSError) -> bool:
    """Whether the same operation may succeed later."""
    text = str(error)
    return not isinstance(error, FileNotFoundError | PermissionError) and not _PERMANENT.search(text) and bool(_TRANSIENT.search(text))


def outlast(place: str, operation: Callable[[], T]) -> T:
    """Call ``operation`` until it succeeds or fails for good; see the module docstring.

    Args:
        place: the server in messages, ``s3://bucket``.

    Raises:
        Unreachable: no answer for :data:`PATIENCE_SECONDS`. OSError: an error that is not transient.
    """
    begun, pause = time.monotonic(), 0.25
    while True:
        try:
            with _slow_is_reported(place, begun):
                result = operation()
        except OSError as error:
            if isinstance(error, Unreachable) or not is_transient(error):
                raise
            cause = str(error).strip().splitlines()[0]
            _report(place, begun, cause)
            waited, patience = time.monotonic() - begun, GIVEN_UP_SECONDS if place in _given_up else PATIENCE_SECONDS
            if waited + pause > patience:
                with _lock:
                    _given_up.add(place)
                raise Unreachable(
                    f"{place} has not answered for {waited:.0f} s ({cause})",
                    hint="check that the storage server runs and that AWS_ENDPOINT_URL and the network are right, then run the same "
                    "command again: finished shards, checkpoints and stages are kept",
                ) from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            _answered(place)
            return result


def _report(place: str, begun: float, cause: str) -> None:
    with _lock:
        if place in _away:
            return
        _away[place] = begun
    log.warning("%s does not answer (%s); requests are repeated for up to %.0f s", place, cause, PATIENCE_SECONDS)


def _answered(place: str) -> None:
    if place not in _away and place not in _given_up:
        return
    with _lock:
        _given_up.discard(place)
        since = _away.pop(place, None)
        if since is None:
            return
        outages.append(outage := Outage(place, time.monotonic() - since))
    log.warning("%s answers again after %.0f s", place, outage.seconds)


@contextmanager
def _slow_is_reported(place: str, begun: float) -> Iterator[None]:
    """Report an outage while the client of S3 still repeats its request."""
    timer = threading.Timer(NOTICE_SECONDS, _report, (place, begun, f"no answer in {NOTICE_SECONDS:.0f} s"))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Enduring(pafs.FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types
    """Implementation of a file system by another, with :func:`outlast` around every operation.

    Attributes:
        path: that of the URI.
    """

    def __init__(self, uri: str, in_background: bool = True):
        self._uri, self._in_background = uri, in_background
        parts = urllib.parse.urlsplit(uri)
        self._place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._inner, self.path = self._call(lambda: _with_attempts(uri, ATTEMPTS, in_background))
        self._streams: pafs.FileSystem | None = None

    def __reduce__(self) -> tuple[type[_Enduring], tuple[str, bool]]:
        return _Enduring, (self._uri, self._in_background)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Enduring) and other._uri == self._uri

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._uri)

    def get_type_name(self) -> str:
        return str(self._inner.type_name)

    def normalize_path(self, path: str) -> str:
        return str(self._inner.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> Any:
        return self._call(lambda: self._inner.get_file_info(paths))

    def get_file_info_selector(self, selector: pafs.FileSelector) -> Any:
        return self._call(lambda: self._inner.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        self._call(lambda: self._inner.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        self._delete(lambda: self._inner.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._delete(lambda: self._inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        self._call(lambda: self._inner.delete_dir_contents("", accept_root_dir=True))

    def delete_file(self, path: str) -> None:
        self._delete(lambda: self._inner.delete_file(path))

    def move(self, src: str, dest: str) -> None:
        self._call(lambda: self._inner.move(src, dest))

    def copy_file(self, src: str, dest: str) -> None:
        self._call(lambda: self._inner.copy_file(src, dest))

    def open_input_stream(self, path: str) -> Any:
        return self._open(lambda files: files.open_input_stream(path, compression=None))

    def open_input_file(self, path: str) -> Any:
        return self._open(lambda files: files.open_input_file(path))

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return self._open(lambda files: files.open_output_stream(path, compression=None, metadata=metadata))

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        return self._open(lambda files: files.open_append_stream(path, compression=None, metadata=metadata))

    def _call(self, operation: Callable[[], T]) -> T:
        return outlast(self._place, operation)

    def _open(self, operation: Callable[[Any], T]) -> T:
        if self._streams is None:
            self._streams, _ = _with_attempts(self._uri, STREAM_ATTEMPTS, self._in_background)
        return self._call(lambda: operation(self._streams))

    def _delete(self, operation: Callable[[], None]) -> None:
        """Delete; after an attempt whose answer was lost, a file that is gone is deleted."""
        attempts = 0

        def attempt() -> None:
            nonlocal attempts
            attempts += 1
            try:
                operation()
            except FileNotFoundError:
                if attempts == 1:
                    raise

        self._call(attempt)


def _with_attempts(uri: str, attempts: int, in_background: bool) -> tuple[pafs.FileSystem, str]:
    """Open a URI; on S3 with that many attempts at a request, and with our time-outs."""
    filesystem, path = pafs.FileSystem.from_uri(uri)
    if filesystem.type_name == "s3":
        _, (options,) = filesystem.__reduce__()  # the options of the URI and the environment; from_uri takes no others
        strategy = pafs.AwsDefaultS3RetryStrategy(max_attempts=attempts)
        ours = {"connect_timeout": CONNECT_SECONDS, "request_timeout": REQUEST_SECONDS, "background_writes": in_background}
        filesystem = pafs.S3FileSystem(**{**options, **ours, "retry_strategy": strategy})
    return filesystem, path
