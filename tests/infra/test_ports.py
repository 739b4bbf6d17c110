"""Ports chosen by several commands at a time, on real sockets and processes."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dora_core.errors import ServiceError
from infra import ports
from infra.ports import END, FIRST, free_port, reserved_until_bound

CHOOSE = """
import sys
from infra.ports import free_port
print(free_port(int(sys.argv[1])), *(free_port() for _ in range(5)), flush=True)
sys.stdin.read()
"""


@contextmanager
def chosen(preferred: int, commands: int) -> Iterator[list[list[int]]]:
    """Let so many processes choose six ports each in the same moment; they keep them until the block ends."""
    command = [sys.executable, "-c", CHOOSE, str(preferred)]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(commands)]
    try:
        yield [[int(port) for port in child.stdout.readline().split()] for child in children]  # type: ignore[union-attr]
    finally:
        for child in children:
            child.kill()
            child.communicate()


def unused() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_free_port_avoids_one_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) != port
    assert free_port(port) == port
    ports.release(port)


def test_a_machine_without_the_address_is_told_so() -> None:
    with pytest.raises(ServiceError, match=r"nothing can listen on 192\.0\.2\.1: ") as error:  # an address of documentation
        free_port(8000, "192.0.2.1")
    assert "IPv4 loopback" in error.value.hint and not error.value.retryable


@pytest.mark.skipif(sys.platform != "linux", reason="reservations are abstract sockets")
def test_commands_that_start_in_the_same_moment_share_no_port() -> None:
    """Nothing listens yet: without reservations both would get the preferred one."""
    preferred = unused()
    with chosen(preferred, commands=2) as [first, second]:
        assert len({*first, *second}) == 12 and (preferred in first) != (preferred in second)
        assert free_port(preferred) != preferred
    assert free_port(preferred) == preferred, "a killed command keeps nothing"
    ports.release(preferred)


@pytest.mark.skipif(sys.platform != "linux", reason="reservations are abstract sockets")
def test_a_reservation_ends_with_its_block() -> None:
    preferred = unused()
    with reserved_until_bound():
        assert free_port(preferred) == preferred == free_port(preferred), "a second attempt of the same command takes it again"
        with chosen(preferred, commands=1) as [other]:
            assert preferred not in other
    with chosen(preferred, commands=1) as [other]:
        assert preferred in other


@pytest.mark.parametrize(("first", "expected"), [("32768\t60999\n", True), ("1024 65535", False), ("15000 60999", False)])
def test_ports_lie_outside_the_range_of_outgoing_connections(
    first: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system's range covers ours, the system chooses."""
    monkeypatch.setattr(ports, "_SYSTEMS_RANGE", tmp_path / "range")
    (tmp_path / "range").write_text(first)
    with reserved_until_bound():
        chosen_ports = [free_port() for _ in range(20)]
    assert len(set(chosen_ports)) == 20
    assert all(FIRST <= port < END for port in chosen_ports) == expected
