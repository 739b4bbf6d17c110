"""Inputs as canonical rows: every file of an input through one resolved adapter.

Files with the same columns share one resolution (``adapter/resolve.py``), made from the first rows of one of them. The shapes rows and
tree join rows of all files of an input, so that their adapter is resolved once, for all columns together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from dora_core.config.adapter import AdapterColumns, paths_of, roots_of
from dora_core.data.acceptance import BadRow, Mapped
from dora_core.data.adapter.canonical import CanonicalRow
from dora_core.data.adapter.driver import RowAdapter
from dora_core.data.adapter.paths import CompiledPath, Missing
from dora_core.data.adapter.resolve import Resolved, resolve
from dora_core.data.adapter.shapes.base import shapes
from dora_core.data.arrow_rows import UnreadableValues
from dora_core.data.columns_left import decision_of
from dora_core.data.formats import Reader
from dora_core.data.inputs import BATCH_ROWS, Input, open_files
from dora_core.data.locations import readable
from dora_core.data.problems import Problem, in_words
from dora_core.data.withdrawn import marks_in, may_mark_rows
from dora_core.errors import DataError

SAMPLE_ROWS = 64
"""Rows of an input by which its schema is recognised."""


class AdaptedRow(NamedTuple):
    """A canonical row or the problems of a row, with its place: the file and the position in it, counted from 0."""

    file: str
    row: int
    value: CanonicalRow | list[Problem]
    adapter: RowAdapter

    def column_of(self, name: str) -> str:
        """The user's name for a field, for messages about their file."""
        return self.adapter.place_of(name)

    def bad(self, found: Problem) -> BadRow:
        """The row by its first problem, under the user's name of the field."""
        text = in_words(found._replace(field=self.column_of(found.field)))
        return BadRow(file=self.file, row=self.row, reason=str(found.reason), text=text)


@dataclass
class MappedFiles:
    """Files with the same columns, and their adapter."""

    columns: list[str]
    ragged: bool
    resolved: Resolved
    files: list[str] = field(default_factory=list)
    empty: tuple[str, ...] = ()
    """Columns that nothing reads and that are null in the sample: a later value may need a decision."""
    marks: tuple[str, ...] = ()
    """Columns that nothing reads and that may mark a later row as withdrawn."""

    @property
    def gives_split(self) -> bool:
        """Whether rows of these files say their split."""
        return "split" in self.resolved.left.used or bool(self.resolved.adapter.columns.split)


class AdaptedInput:
    """One input with its adapters.

    Attributes:
        mappings: in the order of their first file; more than one where files differ in their columns.
        notes: parts of rows that were left out or decided, by what they are; counted while rows are read.
        rows_read: rows of the files so far.
        file_notes: choices made when the files were opened: the split that is read, those left out, the field that holds the rows.
        is_cut: whether ``most_rows`` has ended the reading, so that rows are left.
    """

    def __init__(self, item: Input, fingerprints: Mapping[str, str], most_rows: int | None = None):
        self.item, self._fingerprints, self._most = item, fingerprints, most_rows
        self.is_cut = False
        self.notes: Counter[str] = Counter()
        self.rows_read = 0
        self.file_notes = list[str]()
        self.mappings = self._resolved(list(self._schemas()))
        if item.content in ("train", "eval"):
            self._check_sources()

    @property
    def gives_split(self) -> bool:
        """Whether rows of a file say their split."""
        return any(mapping.gives_split for mapping in self.mappings)

    @property
    def mapped(self) -> list[Mapped]:
        """How the files are read, for the rules of acceptance."""
        return [Mapped(self.item.place, one.resolved.shape, tuple(one.resolved.adapter.carry), one.gives_split) for one in self.mappings]

    @property
    def files(self) -> list[str]:
        return [name for mapping in self.mappings for name in mapping.files]

    # ------------------------------------------------------------------------------------------------- resolution

    def _schemas(self) -> Iterator[tuple[list[str], bool, list[dict[str, Any]], list[str]]]:
        """(columns, ragged, sample, files) by set of columns."""
        found: dict[frozenset[str], tuple[list[str], bool, list[dict[str, Any]], list[str]]] = {}
        for name, reader, notes in open_files(self.item, self._fingerprints):
            self.file_notes += [note for note in notes if note not in self.file_notes]
            columns = self._distinct(name, reader)
            late = self._late(name, reader, columns)
            columns += [column for row in late for column in row if column not in columns]
            key = frozenset(columns)
            if key not in found or not found[key][2]:
                sample = sample_of(name, reader) + late
                files = found[key][3] if key in found else []
                found[key] = (columns, reader.ragged, sample, files)
            found[key][3].append(name)
        yield from found.values()

    def _late(self, name: str, reader: Reader, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Rows that show mapped paths of which the beginning of the file shows nothing, where rows may hold further fields (JSON); reads
        the file until each is found, only if there are any."""
        source = self.item.source
        paths = [path for _, path in paths_of(source)] + source.carry
        if not reader.ragged or not paths:
            return []
        sample, found = sample_of(name, reader), list[dict[str, Any]]()
        # As a path, and as the whole name of a column: which of them it is, only the row shows that has it.
        forms = {path: (CompiledPath(path), CompiledPath(path, (path,))) for path in paths}
        missing = {path: form for path, form in forms.items() if not any(_leads(form, row) for row in sample)}
        if not missing:
            return []
        with readable(name):
            for _, row in reader.rows(None, BATCH_ROWS):
                shown = [path for path, form in missing.items() if isinstance(row, dict) and _leads(form, row)]
                if shown:
                    missing = {path: form for path, form in missing.items() if path not in shown}
                    found.append(dict.fromkeys(columns) | row)
                if not missing:
                    break
        return found

    def _distinct(self, name: str, reader: Reader) -> list[str]:
        """Columns of a file. One that is there twice is refused if a record may need it, and else not read."""
        twice = [column for column, times in Counter(reader.columns).items() if times > 1]
        source = self.item.source
        paths = [path for _, path in paths_of(source)] + source.carry
        needed = {root for path in paths for root in roots_of(path)} | AdapterColumns.model_fields.keys()
        refused = [column for column in twice if column in needed or (column not in source.ignore and decision_of(column, [True]))]
        if refused:
            raise DataError(f"{name}: column {', '.join(refused)} is there twice", hint="keep one of them, or rename the other")
        self.file_notes += [
            note for column in twice if (note := f"{name}: column {column} is there twice, not read") not in self.file_notes
        ]
        return [column for column in reader.columns if column not in twice]

    def _resolved(self, schemas: Sequence[tuple[list[str], bool, list[dict[str, Any]], list[str]]]) -> list[MappedFiles]:
        mappings = [self._mapped(*schema) for schema in schemas]
        if len(mappings) > 1 and any(mapping.resolved.shape in ("rows", "tree") for mapping in mappings):
            columns = list(dict.fromkeys(column for one in schemas for column in one[0]))
            sample = [row for one in schemas for row in one[2][: max(1, SAMPLE_ROWS // len(schemas))]]
            files = [file.name for file in open_files(self.item, self._fingerprints)]
            return [self._mapped(columns, True, sample, files)]
        return mappings

    def _mapped(self, columns: list[str], ragged: bool, sample: list[dict[str, Any]], files: list[str]) -> MappedFiles:
        resolved = resolve(
            self.item.source.adapter,
            columns,
            sample,
            place=self.item.place,
            name=files[0],
            golden=self.item.content == "golden",
            ragged=ragged,
        )
        empty = tuple(column for column in resolved.left.unnamed if all(row.get(column) is None for row in sample))
        marks = tuple(column for column in resolved.left.unnamed if may_mark_rows(column))
        return MappedFiles(columns, ragged, resolved, files, empty, marks)

    def _check_sources(self) -> None:
        place = self.item.place
        for mapping in self.mappings:
            if self.item.source.source is None and not mapping.resolved.names_sources:
                needed = _SOURCE_FIELDS.get(mapping.resolved.shape, "source")
                raise DataError(
                    f"{place}: {mapping.files[0]} does not name the sources of its responses, and calibration compares sources",
                    hint=f"set {place}.source: NAME for all rows, or {place}.columns.{needed}; "
                    f"columns there: {', '.join(sorted(mapping.columns))}",
                )

    # ------------------------------------------------------------------------------------------------- rows

    def rows(self, batch_rows: int = BATCH_ROWS, *, but_train: bool = False) -> Iterator[AdaptedRow]:
        """All rows in the order of the files. A record of the shapes rows and tree stands at its first row, after all rows were read.

        Args:
            but_train: leave out rows whose split is train by their own column, where a row is a record.

        Raises:
            DataError: a file cannot be read to its end, or late rows have a column that needs a decision.
        """
        of_file = {name: mapping for mapping in self.mappings for name in mapping.files}
        adapters = {id(mapping): RowAdapter(mapping.resolved.adapter, mapping.columns) for mapping in self.mappings}
        late = _LateColumns(self.item)
        joined = [mapping for mapping in self.mappings if mapping.resolved.shape in ("rows", "tree")]
        places = _Places()
        if joined:
            adapter = adapters[id(joined[0])]
            for position, value in adapter.rows(places.numbered(self._raw(of_file, late, batch_rows))):
                yield AdaptedRow(*places.of(position), value, adapter)
        else:
            for name, reader, _ in open_files(self.item, self._fingerprints):
                mapping = of_file[name]
                adapter = adapters[id(mapping)]
                raw = self._read(name, reader, mapping, late, batch_rows)
                if but_train:
                    raw = ((position, row) for position, row in raw if not adapter.is_train(row))
                for position, value in adapter.rows(raw):
                    yield AdaptedRow(name, position, value, adapter)
        for adapter in adapters.values():
            self.notes.update(adapter.notes)
        self.notes.update(late.notes())

    def _raw(self, of_file: Mapping[str, MappedFiles], late: _LateColumns, batch_rows: int) -> Iterator[tuple[str, int, Any]]:
        for name, reader, _ in open_files(self.item, self._fingerprints):
            for position, row in self._read(name, reader, of_file[name], late, batch_rows):
                yield name, position, row

    def _read(self, name: str, reader: Reader, mapping: MappedFiles, late: _LateColumns, batch_rows: int) -> Iterator[tuple[int, Any]]:
        ignored = set(mapping.resolved.left.ignored) - shapes()[mapping.resolved.shape].always_read
        wanted = [column for column in mapping.columns if column not in ignored]
        there = set(reader.columns)
        known = there | set(mapping.columns)
        read = None if reader.ragged else {column: column for column in wanted if column in there}
        absent = dict.fromkeys(wanted)
        empty, used = frozenset(mapping.empty), frozenset(mapping.resolved.left.used)
        whole = not reader.ragged and len(there) == len(reader.columns) and there >= set(wanted)
        with readable(name):
            for position, row in reader.rows(read, batch_rows):
                if self._most is not None and self.rows_read >= self._most:
                    self.is_cut = True
                    return
                self.rows_read += 1
                if isinstance(row, UnreadableValues) and not row.fields & used:
                    self.notes["values of carried columns that cannot be read, left out"] += len(row.fields)
                    row = {**absent, **row.row}
                if type(row) is dict and not whole:
                    if row.keys() - known:
                        late.see(name, position, row, row.keys() - known, read=False)
                    row = {**absent, **row}
                if empty and type(row) is dict:
                    late.see(name, position, row, empty, read=True)
                if mapping.marks and type(row) is dict:
                    late.see_marks(name, position, row, mapping.marks)
                yield position, row


_SOURCE_FIELDS = {"list": "sources", "mixed": "sources", "pair": "chosen_source and rejected_source", "ab": "a_source and b_source"}


def sample_of(name: str, reader: Reader) -> list[dict[str, Any]]:
    """The first rows of a file, by which its schema is recognised."""
    names = None if reader.ragged else {column: column for column, times in Counter(reader.columns).items() if times == 1}
    nulls = dict.fromkeys(reader.columns)
    with readable(name):
        read = (row.row if isinstance(row, UnreadableValues) else row for _, row in islice(reader.rows(names, SAMPLE_ROWS), SAMPLE_ROWS))
        return [{**nulls, **row} for row in read if isinstance(row, dict)]


def _leads(forms: Sequence[CompiledPath], row: dict[str, Any]) -> bool:
    """Whether a row has a value at a path, in one of its forms."""
    found = [form.get(row) for form in forms]
    return any(value is not None and type(value) is not Missing for value in found)


class _Places:
    """One number for every row of several files, and back."""

    def __init__(self) -> None:
        self._names, self._firsts, self._next = list[str](), list[int](), 0

    def numbered(self, rows: Iterator[tuple[str, int, Any]]) -> Iterator[tuple[int, Any]]:
        for name, position, row in rows:
            if not self._names or self._names[-1] != name:
                self._names.append(name)
                self._firsts.append(self._next)
            number = self._firsts[-1] + position
            self._next = number + 1
            yield number, row

    def of(self, number: int) -> tuple[str, int]:
        at = bisect_right(self._firsts, number) - 1
        return self._names[at], number - self._firsts[at]


class _LateColumns:
    """Columns without a value at the beginning of their file: refused where a later value needs a decision, else counted."""

    def __init__(self, item: Input):
        self.item, self._decided, self._unread = item, set[str](), Counter[str]()

    def see(self, name: str, position: int, row: Mapping[str, Any], columns: Collection[str], *, read: bool) -> None:
        """Check the values of ``columns``; ``read``: they are carried along."""
        for column in columns:
            value = row[column]
            if value is None:
                continue
            if column not in self._decided:
                self._decide(name, position, column, value)
            if not read:
                self._unread[column] += 1

    def see_marks(self, name: str, position: int, row: Mapping[str, Any], columns: Collection[str]) -> None:
        """Refuse the first row that a column marks as withdrawn."""
        for column in columns:
            decision = decision_of(column, [row[column]]) if marks_in(column, [row[column]]) else None
            if decision is not None:
                raise DataError(
                    f"{name}, row {position}: the first row that the column {column!r}, which nothing reads, marks as withdrawn",
                    hint=f"{decision.text()} (under {self.item.place})",
                )

    def _decide(self, name: str, position: int, column: str, value: Any) -> None:
        self._decided.add(column)
        if column in self.item.source.ignore or column in self.item.source.carry:
            return
        decision = decision_of(column, [value])
        if decision is not None:
            raise DataError(
                f"{name}, row {position}: the first value of the column {column!r}, which nothing reads, needs a decision",
                hint=f"{decision.text()} (under {self.item.place})",
            )

    def notes(self) -> dict[str, int]:
        return {f"field {column!r} that the beginning of its file does not have, not read": n for column, n in self._unread.items()}
