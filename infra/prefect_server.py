"""Prefect's server, with transactions on SQLite that wait for other writers: ``python -m infra.prefect_server`` takes Prefect's arguments.

Prefect 3.8 begins most transactions as reads (``BEGIN DEFERRED``) and writes later. SQLite has one writer at a time and never lets a
transaction that has read wait for it: the write fails at once, whatever the time-out is ("database is locked"), and the server answers 503
to an edit of a schedule, or to a worker that starts a run, which then crashes. ``BEGIN IMMEDIATE`` takes its turn first, within SQLite's
time-out of a minute (https://www.sqlite.org/lang_transaction.html). Reads outside transactions do not wait.
PostgreSQL is not affected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import _AsyncGeneratorContextManager

    from prefect.server.database.configurations import AioSqliteConfiguration
    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


def write_in_turn() -> None:
    """Let every transaction on SQLite of this process begin as a write; safe to repeat."""
    from prefect.server.database import configurations

    begin = configurations.AioSqliteConfiguration.begin_transaction
    if getattr(begin, "in_turn", False):
        return

    def begin_in_turn(
        self: AioSqliteConfiguration, session: AsyncSession, with_for_update: bool = False
    ) -> _AsyncGeneratorContextManager[AsyncSessionTransaction]:
        return begin(self, session, with_for_update=True)

    begin_in_turn.in_turn = True  # type: ignore[attr-defined]
    configurations.AioSqliteConfiguration.begin_transaction = begin_in_turn  # type: ignore[method-assign]


def main() -> None:
    write_in_turn()
    from prefect.cli import app

    app()


if __name__ == "__main__":
    main()
