"""A real PostgreSQL from Debian's package (``apt install postgresql``), for one test session: separate folder and port, loopback only."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from infra.ports import free_port

USER, PASSWORD = "dora", r"pg-canary\:/@4f1d"  # characters that URLs, files and shells have to escape


def binaries() -> Path | None:
    """Find the newest installed version's folder; its programs are not on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: float(p.parent.parent.name))
    return found[-1].parent if found else None


class PostgresServer:
    """A server of a folder: started, stopped, and started again on the same port.

    Attributes:
        url: ``postgresql://user:password@127.0.0.1:port``; the user may create databases.
    """

    def __init__(self, programs: Path, folder: Path):
        self._programs, self._folder, self._port = programs, folder, free_port()
        self._as_user: dict[str, Any] = {}
        self.url = f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self._port}"
        password = folder / "password"
        password.write_text(PASSWORD)
        if os.getuid() == 0:  # initdb refuses root; Debian's package brings a user
            account = pwd.getpwnam("postgres")
            self._as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            for path in (folder, password):
                os.chown(path, account.pw_uid, account.pw_gid)
        options = ["-U", USER, "--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8", "--locale=C", "--no-sync"]
        command = [programs / "initdb", "-D", folder / "data", *options]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, **self._as_user)

    def start(self) -> None:
        settings = {"listen_addresses": "127.0.0.1", "port": self._port, "unix_socket_directories": self._folder}
        settings |= {"fsync": "off", "max_connections": 100}
        command = [self._programs / "postgres", "-D", self._folder / "data", *(f"--{name}={value}" for name, value in settings.items())]
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder, **self._as_user)
        ready = [self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        while subprocess.run(ready, check=False).returncode:
            assert self._process.poll() is None, (self._folder / "log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """End open connections and the server (what PostgreSQL calls a fast shutdown)."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Yield a server that runs. Skip if PostgreSQL is not installed."""
    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL server in /usr/lib/postgresql: apt install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="dora-postgres-"))
    server = PostgresServer(programs, folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def dump(url: str, database: str) -> bytes:
    """Dump one database as text."""
    programs, server = binaries(), url.rpartition("@")[2]
    assert programs is not None
    command = [programs / "pg_dump", "--inserts", f"postgresql://{USER}@{server}/{database}"]
    return subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PGPASSWORD": PASSWORD}).stdout
