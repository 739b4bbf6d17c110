"""MLflow's SQLite file after its home was moved: the absolute places in it follow.

MLflow keeps where artifacts lie as absolute paths, per experiment, run and model version. After the home was renamed or mounted elsewhere,
new files would go below the old path, which is made anew, and old ones would not be found. The database and the artifacts are in one home,
so every place below another ``…/mlartifacts`` is an earlier place of this home.

Left out: PostgreSQL, which the homes of several machines may share.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

ARTIFACTS = "mlartifacts"
PLACES = {"experiments": "artifact_location", "runs": "artifact_uri", "logged_models": "artifact_location", "model_versions": "source"}
"""Table → column with a place."""
BUSY_SECONDS = 30.0


def follow_home(database: Path, artifact_root: Path) -> list[str]:
    """Replace earlier places of the home by today's; returns the earlier ones. Idempotent; a read where nothing moved.

    Args:
        database: SQLite file in the home; a missing one is left alone, and so is one elsewhere, which several homes may share.
        artifact_root: ``<home>/mlartifacts`` of today; another name is not a home's own folder, and is left alone.

    Raises:
        sqlite3.Error: the database is damaged, or stays locked.
    """
    home = artifact_root.resolve().parent
    if artifact_root.name != ARTIFACTS or not database.is_file() or database.resolve().parent != home:
        return []
    with closing(sqlite3.connect(database, timeout=BUSY_SECONDS)) as connection, connection:
        tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
        if "experiments" not in tables:
            return []
        locations = [place for (place,) in connection.execute("select distinct artifact_location from experiments")]
        earlier = {old for place in locations if (old := _home_of(place)) is not None and old != home}
        for old in sorted(earlier):
            for table, column in PLACES.items():
                for before, now in ((str(old), str(home)), (old.as_uri(), home.as_uri())):
                    if table in tables:
                        connection.execute(
                            f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",
                            (f"{now}/", len(before) + 2, len(before) + 1, f"{before}/"),
                        )
    return [str(old) for old in sorted(earlier)]


def _home_of(place: str | None) -> Path | None:
    """Return the home of ``/home/mlartifacts/project`` or its ``file://`` URI; None for another kind of place."""
    if not place:
        return None
    parts = urlsplit(place)
    path = Path(unquote(parts.path) if parts.scheme == "file" else place)
    if parts.scheme not in ("", "file") or not path.is_absolute():
        return None
    return path.parent.parent if path.parent.name == ARTIFACTS else None
