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


@contextmanager
def postgres_server() -> Iterator[str]:
    """Yield ``postgresql://user:password@127.0.0.1:port``; the user may create databases. Skip if PostgreSQL is not installed."""
    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL server in /usr/lib/postgresql: apt install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="dora-postgres-"))
    password, data, port = folder / "password", folder / "data", free_port()
    password.write_text(PASSWORD)
    as_user: dict[str, Any] = {}
    if os.getuid() == 0:  # initdb refuses root; Debian's package brings a user
        account = pwd.getpwnam("postgres")
        as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        for path in (folder, password):
            os.chown(path, account.pw_uid, account.pw_gid)
    options = ["-U", USER, "--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8", "--locale=C", "--no-sync"]
    subprocess.run([programs / "initdb", "-D", data, *options], check=True, capture_output=True, cwd=folder, **as_user)
    settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off", "max_connections": 100}
    with (folder / "log").open("w") as log:
        command = [programs / "postgres", "-D", data, *(f"--{name}={value}" for name, value in settings.items())]
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **as_user)
    try:
        while subprocess.run([programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)], check=False).returncode:
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)  # "fast": open connections are ended
        server.wait(30)
        shutil.rmtree(folder)


def dump(url: str, database: str) -> bytes:
    """Dump one database as text."""
    programs, server = binaries(), url.rpartition("@")[2]
    assert programs is not None
    command = [programs / "pg_dump", "--inserts", f"postgresql://{USER}@{server}/{database}"]
    return subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PGPASSWORD": PASSWORD}).stdout
