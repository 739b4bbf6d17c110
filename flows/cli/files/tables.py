"""Tables that commands read from and write to files of the user: Parquet or JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dora_core.errors import ConfigError, DataError
from infra.store.store import write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 2_000
"""Rows written at a time."""


@dataclass(frozen=True)
class Output:
    """Output file of a command: Parquet or JSON lines, written completely or not at all."""

    path: Path
    overwrite: bool = False

    def check(self, *, computed: bool) -> None:
        """Check the path before any work.

        Args:
            computed: the result is in the store already, so that an existing file may well be this very result.

        Raises:
            ConfigError: it cannot or must not be written.
        """
        if self.path.suffix not in (".parquet", ".jsonl"):
            raise ConfigError(f"cannot tell the format of the output {self.path}", hint="end it in .parquet or .jsonl")
        if self.path.is_dir() or not os.access(self._existing_parent(), os.W_OK | os.X_OK):
            raise ConfigError(f"cannot write {self.path}: no file can be made there", hint="name a file in a folder you may write to")
        if self.path.exists() and not (self.overwrite or computed):
            raise self._exists()

    def write(self, table: pa.Table) -> None:
        """
        Raises:
            ConfigError: another file is there and is not to be overwritten, or the disk refuses.
        """
        with self._replaced() as temporary:
            _write_table(table, temporary, self.path.suffix)

    def write_rows(self, rows: Iterable[dict[str, Any]], schema: pa.Schema, progress: Callable[[int], None] = lambda done: None) -> None:
        """Write rows as they come; memory holds :data:`BATCH_ROWS` of them.

        Raises:
            ConfigError: as :meth:`write`.
        """
        with self._replaced() as temporary:
            _write_rows(iter(rows), temporary, self.path.suffix, schema, progress)

    @contextmanager
    def _replaced(self) -> Iterator[Path]:
        """Yield a path to write to; the file there replaces the output at the end."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if self.path.exists() and not self.overwrite and self.path.read_bytes() != temporary.read_bytes():
                raise self._exists()
            os.replace(temporary, self.path)
        except OSError as error:
            raise _refused(self.path, error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _existing_parent(self) -> Path:
        return next(folder for folder in self.path.absolute().parents if folder.exists())

    def _exists(self) -> ConfigError:
        return ConfigError(f"{self.path} exists and holds something else", hint="add --overwrite, or name another output")


def read_rows(path: Path | str) -> pa.Table:
    """Read a Parquet or JSON-lines file as a table.

    Raises:
        DataError: it is not there or cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path).expanduser()
    try:
        if path.suffix in (".parquet", ".pq"):
            return pq.read_table(path)
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        names = dict.fromkeys(name for row in rows for name in row)
        return pa.table({name: [row.get(name) for row in rows] for name in names})
    except (OSError, ValueError, AttributeError, TypeError, pa.ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}", hint="give a Parquet file, or JSON lines: one object per line") from None


def write_text(path: Path, text: str) -> None:
    """
    Raises:
        ConfigError: the disk refuses.
    """
    try:
        write_atomic(path, text)
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write {path}: {error.strerror or error}", hint="name a file in a folder you may write to")


def _write_table(table: pa.Table, path: Path, suffix: str) -> None:
    import pyarrow.parquet as pq

    if suffix == ".parquet":
        pq.write_table(table, path, compression="zstd")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()), encoding="utf-8")


def _write_rows(rows: Iterator[dict[str, Any]], path: Path, suffix: str, schema: pa.Schema, progress: Callable[[int], None]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    done = 0
    if suffix == ".parquet":
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            while batch := list(islice(rows, BATCH_ROWS)):
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                progress(done := done + len(batch))
        return
    with path.open("w", encoding="utf-8") as file:
        while batch := list(islice(rows, BATCH_ROWS)):
            file.writelines(json.dumps({name: row.get(name) for name in schema.names}, ensure_ascii=False) + "\n" for row in batch)
            progress(done := done + len(batch))
