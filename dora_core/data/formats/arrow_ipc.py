"""Arrow IPC files and streams, and Feather (version 2), read one record batch at a time. Every batch is validated before it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dora_core.data.arrow_rows import numbered_rows
from dora_core.data.formats.base import Format, Location
from dora_core.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_FILE, _OLD_FEATHER = b"ARROW1", b"FEA1"


class ArrowReader:
    """One Arrow or Feather file."""

    ragged = False
    notes: tuple[str, ...] = ()

    def __init__(self, at: Location):
        (self._file,) = at.files
        with self._file.filesystem.open_input_stream(self._file.path, compression=None) as stream:
            magic = stream.read(len(_FILE))
        if magic.startswith(_OLD_FEATHER):
            raise DataError(f"{at.name} is Feather version 1", hint="write it again: pyarrow.feather.write_feather, or as Parquet")
        self._is_stream = magic != _FILE
        with self._opened() as reader:
            schema = reader.schema
        self.columns: list[str] = schema.names
        self.types: Mapping[str, pa.DataType] = {field.name: field.type for field in schema}

    def rows(self, columns: Mapping[str, str] | None, batch_rows: int) -> Iterator[tuple[int, Any]]:
        with self._opened() as reader:
            batches = reader if self._is_stream else map(reader.get_batch, range(reader.num_record_batches))
            yield from numbered_rows(_cut(batches, batch_rows), columns)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        import pyarrow as pa

        path, filesystem = self._file.path, self._file.filesystem
        if self._is_stream:
            with filesystem.open_input_stream(path, compression=None) as stream, pa.ipc.open_stream(stream) as reader:
                yield reader
        else:
            with filesystem.open_input_file(path) as file, pa.ipc.open_file(file) as reader:
                yield reader


def _cut(batches: Iterator[pa.RecordBatch], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """The batches in pieces; a damaged one raises here instead of ending this process when its values are read."""
    for batch in batches:
        batch.validate(full=True)
        for start in range(0, batch.num_rows, batch_rows):
            yield batch.slice(start, batch_rows)


FORMAT = Format("arrow", "Feather or Arrow file", ArrowReader, suffixes=(".arrow", ".feather", ".ipc"))
