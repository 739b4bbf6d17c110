"""CSV and TSV in UTF-8 with a header (RFC 4180), plain or compressed.

Every value is text as it is written: ``007`` stays ``007``, and no column changes its type with its rows. An empty field is null. The
delimiter is the one of comma, tab, semicolon and bar that gives the header most columns. Positions count lines, the header included; a row
over several lines has that of its first. A row with another number of fields than the header, or with bytes that are not UTF-8, is a
problem of that row; a quote that does not follow the rules refuses the file, because the next row could begin anywhere.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from dora_core.data.formats._compression import open_bytes
from dora_core.data.formats._looks import look_at
from dora_core.data.formats._text import refuse_utf16
from dora_core.data.formats.base import Format, Location
from dora_core.data.problems import Problem, Reason
from dora_core.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

MOST_CHARS = 1 << 28
"""Longest field; Python's own limit is 131,072 characters."""
HEADER_CHARS = 1 << 20
_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


class CsvReader:
    """One table of text."""

    ragged = False

    def __init__(self, at: Location):
        (self._file,) = at.files
        self._name = at.name
        tabs = any(ending in (".tsv", ".tab") for ending in map(str.lower, PurePosixPath(self._file.path).suffixes[-2:]))
        with open_bytes(self._file) as stream:
            start = stream.read(HEADER_CHARS)
        refuse_utf16(start, at.name)
        look = look_at(self._file)  # any text could be a table of one column
        if look is not None and look.format != "csv":
            raise DataError(f"{at.name} is not a table of text: it looks like {look.text}", hint=look.hint)
        self._delimiter, self.columns = self._header(start, "\t" if tabs else ",")
        usual = self._delimiter == ("\t" if tabs else ",")
        self.notes: tuple[str, ...] = () if usual else (f"{at.name}: its columns are separated by {_DELIMITERS[self._delimiter]}",)

    @property
    def types(self) -> Mapping[str, pa.DataType]:
        import pyarrow as pa

        return dict.fromkeys(self.columns, pa.string())

    def rows(self, columns: Mapping[str, str] | None, batch_rows: int) -> Iterator[tuple[int, Any]]:
        wanted = {name: name for name in self.columns} if columns is None else columns
        places = {field: self.columns.index(name) for field, name in wanted.items()}
        with self._table() as table:
            next(table, None)
            line = table.line_num
            for fields in table:
                number, line = line, table.line_num
                if not fields:
                    continue  # a blank line
                yield number, self._row(fields, places)

    def _row(self, fields: list[str], places: Mapping[str, int]) -> dict[str, str | None] | Problem:
        if len(fields) != len(self.columns):
            return Problem("", Reason.UNPARSABLE, f"{len(fields)} fields, the header has {len(self.columns)}")
        try:
            "".join(fields).encode()
        except UnicodeEncodeError:
            return Problem(
                "",
                Reason.UNPARSABLE,
                "not UTF-8; leave the row out, or convert the file: iconv -f CP1252 -t UTF-8 FILE > NEW_FILE (or from its encoding)",
            )
        return {field: fields[place] or None for field, place in places.items()}

    @contextmanager
    def _table(self) -> Iterator[Any]:
        csv.field_size_limit(max(csv.field_size_limit(), MOST_CHARS))
        with open_bytes(self._file) as stream, io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="") as text:
            table = csv.reader(text, delimiter=self._delimiter, strict=True)
            try:
                yield table
            except csv.Error as error:
                raise DataError(
                    f"cannot read {self._name}: line {table.line_num}: {error}",
                    hint='a field with a delimiter, a quote or a line end is written in quotes, and a quote in it twice: "say ""hi"""',
                ) from None

    def _header(self, start: bytes, usual: str) -> tuple[str, list[str]]:
        """The delimiter and the names of the columns."""
        try:
            text = start.decode("utf-8-sig", "strict" if len(start) < HEADER_CHARS else "ignore")
            text.partition("\n")[0].encode()
        except UnicodeDecodeError as error:
            text = start[: error.start].decode("utf-8-sig")
            if "\n" not in text and "\r" not in text:
                hint = "convert it: iconv -f LATIN1 -t UTF-8 FILE > NEW_FILE (or from the encoding it has)"
                raise DataError(f"{self._name}: its header is not UTF-8", hint=hint) from None
        if "\0" in text[:1000] or text.lstrip().startswith(("{", "[")):
            raise DataError(f"{self._name} does not begin with a header of column names", hint="a CSV or TSV file names its columns first")
        found = {}
        for delimiter in sorted(_DELIMITERS, key=lambda d: d != usual):
            try:
                found[delimiter] = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [])
            except csv.Error:
                continue
        if not found:
            raise DataError(f"{self._name}: the quotes of its header are not balanced", hint="correct the first line")
        best = max(found, key=lambda delimiter: len(found[delimiter]))  # the usual one comes first, so it wins a tie
        return best, found[best]


FORMAT = Format("csv", "CSV or TSV file", CsvReader, suffixes=(".csv", ".tsv", ".tab"), compressible=True)
