"""Shape rows: one response per row; rows of one prompt are a record. Order of the records: first row of each group.

All rows are spilled to disk (``dora_core/data/adapter/spill.py``) and grouped by the sort of SQLite. A bad row is reported at once and
takes no part in its group.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dora_core.config.adapter import Adapter
from dora_core.data.adapter.base import ResponseReader, RowReader
from dora_core.data.adapter.canonical import CanonicalRow
from dora_core.data.adapter.labels import SKIPPED, OneLabel
from dora_core.data.adapter.numbers import describe
from dora_core.data.adapter.paths import Missing
from dora_core.data.adapter.shapes.base import RowShape
from dora_core.data.adapter.spill import spill_file
from dora_core.data.problems import Problem, Reason, problem

_BATCH = 512
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
MAX_MEMBERS = 256  # the largest `data.max_responses`
_SHARED = ("prompt", "task", "split", "weight", "label_probability", "tools")
_GROUPS = """
    SELECT first.seq, item.payload FROM (SELECT key, MIN(seq) AS seq FROM item GROUP BY key) AS first
    JOIN item ON item.key = first.key ORDER BY first.seq, item.seq
"""


class RowsShape:
    """Reads all rows of an input, then yields a record per group."""

    def __init__(self, adapter: Adapter, columns: Sequence[str], notes: Counter[str]):
        assert adapter.label is not None
        self.reader = RowReader(adapter, columns, notes)
        self.notes, self._responses = notes, ResponseReader(self.reader)
        fields = self.reader.fields
        self.response, self._source = fields.needed("response"), fields.path("source")
        self._label = OneLabel(adapter.label, fields.compile, notes)
        by = adapter.group.by
        prompt = fields.path("prompt")
        self._by = None if by is None or (prompt is not None and prompt.text == by) else fields.compile(by)

    def stream(self, rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, CanonicalRow | list[Problem]]]:
        """(row, problems) as they are met, then (first row of the group, record)."""
        with spill_file() as spill:
            spill.execute("CREATE TABLE item (seq INTEGER PRIMARY KEY, key BLOB, payload TEXT)")
            batch: list[tuple[int, bytes, str]] = []
            for index, row in rows:
                problems: list[Problem] = []
                item = self._item(row, problems)
                if problems:
                    yield index, problems
                elif item is not None:
                    batch.append((index, *item))
                    if len(batch) >= _BATCH:
                        spill.executemany("INSERT INTO item VALUES (?, ?, ?)", batch)
                        batch.clear()
            spill.executemany("INSERT INTO item VALUES (?, ?, ?)", batch)
            spill.execute("CREATE INDEX by_key ON item (key, seq)")
            current, members = -1, list[dict[str, Any]]()
            for first, payload in spill.execute(_GROUPS):
                if first != current and members:
                    yield current, self._record(members)
                    members = []
                current = first
                if len(members) <= MAX_MEMBERS:  # one more than a record can have is enough to refuse it
                    members.append(json.loads(payload))
            if members:
                yield current, self._record(members)

    def _item(self, row: dict[str, Any], problems: list[Problem]) -> tuple[bytes, str] | None:
        number = self._label(row, problems)
        if number is SKIPPED:
            return None
        given = self.reader.given(row, problems)
        reply = self._responses.reply(self.response, row, problems, "response")
        if problems:
            return None
        if reply.text is None:
            problems.append(problem(self.response.text, Reason.MISSING_RESPONSE, "is null"))
            return None
        prompt, texts = self.reader.joined(given, [reply], problems, (self.response.text,))
        fields: dict[str, Any] = {"prompt": prompt, "response": texts[0], "number": number}
        fields["source"] = self._responses.source((self._source,), row, problems)
        self.reader.beside(row, fields, problems)
        key = self._key(row, prompt, fields, problems)
        if problems:
            return None
        try:
            return key, json.dumps(fields, allow_nan=False)
        except (TypeError, ValueError):
            problems.append(problem(self._source.text if self._source else "source", Reason.WRONG_TYPE, "cannot be written as JSON"))
            return None

    def _key(self, row: dict[str, Any], prompt: list[dict[str, str]], fields: dict[str, Any], problems: list[Problem]) -> bytes:
        value: Any = prompt
        if self._by is not None:
            value = self._by.get(row)
            if value is None or type(value) is Missing:
                problems.append(problem(self._by.text, Reason.GROUP_CONFLICT, "is null, and `group.by` names it as the key of the group"))
                return b""
            if not isinstance(value, str | int):
                problems.append(
                    problem(self._by.text, Reason.GROUP_CONFLICT, f"is {describe(value)}, expected text or a whole number as a key")
                )
                return b""
            fields["group"] = value
        return hashlib.sha256(_encode(value).encode()).digest()[:16]

    def _record(self, members: list[dict[str, Any]]) -> CanonicalRow | list[Problem]:
        first = members[0]
        if len(members) > MAX_MEMBERS:
            detail = f"more than {MAX_MEMBERS} rows are of one group; group by another key (`group.by`)"
            return [problem(self.response.text, Reason.TOO_MANY_RESPONSES, detail)]
        fields: dict[str, Any] = {"prompt": first["prompt"], "responses": [m["response"] for m in members]}
        for name in _SHARED:
            if any(m.get(name) != first.get(name) for m in members):
                detail = (
                    f"the {len(members)} rows of one group differ in {name}; group by another key (`group.by`), or switch the field off"
                )
                return [problem(name, Reason.GROUP_CONFLICT, detail)]
            if name in first:
                fields[name] = first[name]
        numbers = [m["number"] for m in members]
        if any(number is not None for number in numbers):
            fields["ranks" if self._label.kind == "rank" else "rewards"] = numbers
        if self._source is not None:
            fields["sources"] = [m["source"] for m in members]
        if "extra" in first:
            extras = [json.loads(m["extra"]) for m in members]
            fields["extra"] = self.reader.extra_text({name: [extra.get(name) for extra in extras] for name in extras[0]})
        if "group" in first and isinstance(first["group"], str | int):
            fields["id"] = first["group"]
        return CanonicalRow("listwise", fields)


SHAPE = RowShape(
    "rows",
    by_stream=RowsShape,
    fields=("response",),
    needed=("response",),
    label_example="e.g. `label: {scores: [helpfulness]}`, `label: {ranks: rank, base: 1}`, "
    "or `label: {column: label, true: [true], false: [false]}`",
)
