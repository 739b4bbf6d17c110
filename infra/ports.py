"""Free TCP ports for servers that bind them seconds later, on a busy machine a minute later.

Two commands that start in the same second would choose the same ports. So a chosen port is

* reserved against other commands of this project, of any user and home, by an abstract Unix socket of its number: the kernel frees it with
  its process, and it belongs to the same network namespace as the port;
* unless the caller prefers one, of a range that the system gives neither to outgoing connections nor to servers that take any port:
  neither gets it first.

Systems other than Linux have no abstract sockets: there a lost port is noticed only when its server ends.
"""

from __future__ import annotations

import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dora_core.errors import ServiceError

LOOPBACK = "127.0.0.1"
FIRST, END = 20000, 30000
"""Below Linux's own range (32768 on) and Kubernetes' node ports (30000 on), above the worker ports that Ray takes by default."""
TRIES = 100
_SYSTEMS_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_reserved: dict[int, socket.socket] = {}


def free_port(preferred: int | None = None, host: str = LOOPBACK) -> int:
    """Return ``preferred`` if nothing listens there and no other command has reserved it, else a free port; reserve it.

    Args:
        preferred: may be one that this process has reserved before.
        host: IPv4 address of this machine.

    Raises:
        ServiceError: nothing can listen on ``host``: a machine without IPv4 loopback.
    """
    reason = ""
    if preferred is not None and (preferred in _reserved or _reserve(preferred)):
        port, reason = _bindable(host, preferred)
        if port:
            return port
        release(preferred)
    for _ in range(TRIES):
        port, reason = _bindable(host, _candidate())
        if port and port not in _reserved and _reserve(port):
            return port
    raise ServiceError(
        f"nothing can listen on {host}: {reason or 'every port that was tried is in use'}",
        hint="Prefect, MLflow and Ray are reached over IPv4 loopback here: give this machine (or container) the address 127.0.0.1",
        retryable=False,
    )


@contextmanager
def reserved_until_bound() -> Iterator[None]:
    """Keep the ports chosen in the block reserved until its end, when their servers listen or have failed."""
    before = set(_reserved)
    try:
        yield
    finally:
        release(*(_reserved.keys() - before))


def release(*ports: int) -> None:
    """Give reserved ports up; others are ignored."""
    for port in ports:
        if (reservation := _reserved.pop(port, None)) is not None:
            reservation.close()


def _reserve(port: int) -> bool:
    """Whether no other process has reserved the port."""
    reservation = socket.socket(socket.AF_UNIX)
    if sys.platform == "linux":
        try:
            reservation.bind(f"\0dora-realign-port-{port}")
        except OSError:
            reservation.close()
            return False
    _reserved[port] = reservation
    return True


def _bindable(host: str, port: int) -> tuple[int, str]:
    """Return the port if a server can listen on it, for 0 the one that the system chooses; else 0 and the reason."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return 0, str(error.strerror)
        return int(probe.getsockname()[1]), ""


def _candidate() -> int:
    """Return a random port of the range; 0, which lets the system choose, where the system's own range covers it."""
    try:
        end = min(END, int(_SYSTEMS_RANGE.read_text(encoding="utf-8").split()[0]))
    except (OSError, ValueError, IndexError):
        end = END
    return FIRST + secrets.randbelow(end - FIRST) if end > FIRST + TRIES else 0
