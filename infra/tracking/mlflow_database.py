"""MLflow's SQLite file appears whole.

MLflow makes a new file by fifty migrations, which SQLite does not keep in one transaction: a process that is killed meanwhile leaves a file
that MLflow can never open again. So a new file is made beside its place, under a lock, and renamed; a half-made one of an earlier release,
with nothing in it, is replaced.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from infra.databases import sqlite_url
from infra.tracking.mlflow_import import load_mlflow

BUSY_SECONDS = 30.0


def ensure_database(file: Path) -> None:
    """Make the file if there is none, or a half-made one without content. Costs 4 s then, else milliseconds.

    Raises:
        OSError: the folder cannot be made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if _is_whole(file):
        return
    with _locked(file):
        if not _is_whole(file):
            _make(file)


def local_path(location: str | None) -> Path | None:
    """Return the folder of an artifact location; None if it is remote."""
    if location and location.startswith("file:"):
        return Path(unquote(urlsplit(location).path))
    return Path(location) if location and location.startswith("/") else None


def below(place: Path, folder: Path) -> bool:
    return place.resolve().is_relative_to(folder.resolve())


def _is_whole(file: Path) -> bool:
    """Whether MLflow can open the file, or it holds something: then it is never replaced."""
    if not file.exists():
        return False
    try:
        # Not read-only: SQLite first takes back what a killed process has not committed.
        with closing(sqlite3.connect(file, timeout=BUSY_SECONDS)) as base:
            tables = {name for (name,) in base.execute("select name from sqlite_master where type = 'table'")}
            if any(base.execute(f"select 1 from {name} limit 1").fetchone() for name in ("runs", "registered_models") if name in tables):
                return True
            if "experiments" in tables and base.execute("select count(*) from experiments").fetchone()[0] > 1:
                return True
            if "alembic_version" not in tables or any(name.startswith("_alembic_tmp_") for name in tables):
                return False
            version = base.execute("select version_num from alembic_version").fetchone()
            return version is not None and version[0] == _newest_version()
    except sqlite3.Error:
        return True  # not ours to judge: MLflow's own error names the cause


def _newest_version() -> str:
    load_mlflow()
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def _make(file: Path) -> None:
    load_mlflow()
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables

    new = file.with_name(f".{file.name}.new")
    _remove(new)
    engine = sqlalchemy.create_engine(sqlite_url(new))
    _initialize_tables(engine)
    engine.dispose()
    with new.open("rb") as made:
        os.fsync(made.fileno())
    for side in ("-journal", "-wal", "-shm"):  # of the half-made file: SQLite would apply them to the new one
        file.with_name(file.name + side).unlink(missing_ok=True)
    os.replace(new, file)


def _remove(file: Path) -> None:
    for side in ("", "-journal", "-wal", "-shm"):
        file.with_name(file.name + side).unlink(missing_ok=True)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One process at a time makes or rewrites the file; the kernel frees the lock of a killed one."""
    with file.with_name(f".{file.name}.lock").open("a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
