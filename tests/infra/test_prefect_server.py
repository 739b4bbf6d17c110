"""Transactions of Prefect's server on SQLite, beside another writer. The whole server: ``test_services.py``."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

TRANSACTION = """
import asyncio, sys
import sqlalchemy as sa
from infra import prefect_server
from prefect.server.database.configurations import AioSqliteConfiguration

if sys.argv[2] == "in turn":
    prefect_server.write_in_turn()
    prefect_server.write_in_turn()

async def write() -> None:
    base = AioSqliteConfiguration(sys.argv[1])
    session = await base.session(await base.engine())
    async with session, base.begin_transaction(session):
        await session.execute(sa.text("select n from t"))  # it read, and then writes
        print("reads", flush=True)
        sys.stdin.readline()
        await session.execute(sa.text("update t set n = n + 1"))
    print("wrote", flush=True)

asyncio.run(write())
"""


@pytest.mark.parametrize("mode", ["as Prefect begins", "in turn"])
def test_a_transaction_that_reads_first_waits_for_its_turn(mode: str, tmp_path: Path) -> None:
    """Another writer commits between its read and its write: what Prefect begins fails at once, though its time-out is a minute."""
    file = tmp_path / "prefect.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("pragma journal_mode = wal")
        other.execute("create table t (n)")
        other.execute("insert into t values (0)")
        command = [sys.executable, "-c", TRANSACTION, f"sqlite+aiosqlite:///{file}", mode]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stdout is not None and child.stdout.readline() == "reads\n"
        if mode == "in turn":
            other.execute("pragma busy_timeout = 0")
            with pytest.raises(sqlite3.OperationalError, match="locked"):  # the turn is the child's
                other.execute("update t set n = n + 10")
            out, error = child.communicate("go on\n")
            assert (child.returncode, out) == (0, "wrote\n"), error
            other.execute("update t set n = n + 10")
            assert other.execute("select n from t").fetchone() == (11,)
        else:
            other.execute("update t set n = n + 10")
            _, error = child.communicate("go on\n")
            assert child.returncode == 1 and "database is locked" in error
            assert other.execute("select n from t").fetchone() == (10,)
