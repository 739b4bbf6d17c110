"""Parquet files, read in batches of rows. Where the writer left page checksums they are verified: a flipped bit is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dora_core.data.arrow_rows import numbered_rows
from dora_core.data.formats.base import Format, Location


class ParquetReader:
    """One Parquet file."""

    ragged = False

    def __init__(self, at: Location):
        import pyarrow.parquet as pq

        (file,) = at.files
        self._file = pq.ParquetFile(file.filesystem.open_input_file(file.path), page_checksum_verification=True)
        self.columns: list[str] = self._file.schema_arrow.names

    def rows(self, columns: Mapping[str, str] | None, batch_rows: int) -> Iterator[tuple[int, Any]]:
        if columns is None:
            columns = {name: name for name in self.columns}
        batches = self._file.iter_batches(batch_size=batch_rows, columns=sorted(set(columns.values())))
        yield from numbered_rows(batches, columns)


FORMAT = Format("parquet", "Parquet file", ParquetReader, suffixes=(".parquet", ".pq"))
