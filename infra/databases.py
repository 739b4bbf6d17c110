"""Addresses of SQLite files, and the files behind them: escaped, never joined from text alone.

SQLAlchemy (2.0) takes what follows a ``?`` for options and escapes nothing in the path of a database, so a path with a ``?`` becomes a
``file:`` URI. Any other path keeps the plain form, by which earlier releases know their files. Left out: ``sqlalchemy.URL``, which renders
the same text for 0.3 s of imports in every command.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote


def sqlite_url(file: Path, driver: str = "") -> str:
    """Return the SQLAlchemy URL of a SQLite file.

    Args:
        file: its absolute path, of any characters.
        driver: such as ``aiosqlite``; empty: Python's own.
    """
    scheme = f"sqlite+{driver}" if driver else "sqlite"
    return f"{scheme}:///file:{quote(str(file))}?uri=true" if "?" in str(file) else f"{scheme}:///{file}"


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite URL; None for another database, an HTTP address, or a database in memory."""
    scheme, separator, rest = url.partition(":///")
    name = rest.partition("?")[0]
    if scheme.partition("+")[0] != "sqlite" or not separator or not name or ":memory:" in name:
        return None
    return Path(unquote(name.removeprefix("file:")) if name.startswith("file:") else name)
