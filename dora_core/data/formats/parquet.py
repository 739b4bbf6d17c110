"""Parquet files, read in batches of rows. Where the writer left page checksums they are verified: a flipped bit is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dora_core.data.arrow_rows import numbered_rows
from dora_core.data.formats.base import Format, Location

if TYPE_CHECKING:
    import pyarrow as pa


class ParquetReader:
    """One Parquet file."""

    ragged = False
    notes: tuple[str, ...] = ()

    def __init__(self, at: Location):
        import pyarrow.parquet as pq

        (file,) = at.files
        self._file = pq.ParquetFile(file.filesystem.open_input_file(file.path), page_checksum_verification=True)
        self.columns: list[str] = self._file.schema_arrow.names
        self.types: Mapping[str, pa.DataType] = {field.name: field.type for field in self._file.schema_arrow}

    def rows(self, columns: Mapping[str, str] | None, batch_rows: int) -> Iterator[tuple[int, Any]]:
        wanted = None if columns is None else sorted(set(columns.values()))
        batches = self._file.iter_batches(batch_size=batch_rows, columns=wanted)
        yield from numbered_rows(batches, columns)


FORMAT = Format("parquet", "Parquet file", ParquetReader, suffixes=(".parquet", ".pq"))
