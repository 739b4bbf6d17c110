"""Shape unpaired: one response per row, with an approval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dora_core.config.adapter import Adapter
from dora_core.data.adapter.base import ResponseReader, RowReader
from dora_core.data.adapter.canonical import Adapted, CanonicalRow
from dora_core.data.adapter.labels import SKIPPED, OneLabel
from dora_core.data.adapter.shapes.base import RowShape
from dora_core.data.problems import Problem, Reason, problem


class UnpairedShape:
    """Reads one row with one response and an approval, for the losses kto and bco."""

    def __init__(self, adapter: Adapter, columns: Sequence[str], notes: Counter[str]):
        assert adapter.label is not None
        self.reader = RowReader(adapter, columns, notes)
        self._responses = ResponseReader(self.reader)
        fields = self.reader.fields
        self.response, self._source = fields.needed("response"), fields.path("source")
        self._label = OneLabel(adapter.label, fields.compile, notes)

    def __call__(self, row: dict[str, Any]) -> Adapted:
        problems: list[Problem] = []
        label = self._label(row, problems)
        if label is SKIPPED:
            return None
        given = self.reader.given(row, problems)
        reply = self._responses.reply(self.response, row, problems, "response")
        if problems:
            return problems
        if reply.text is None:
            return [problem(self.response.text, Reason.MISSING_RESPONSE, "is null")]
        prompt, texts = self.reader.joined(given, [reply], problems, (self.response.text,))
        fields: dict[str, Any] = {"prompt": prompt, "response": texts[0], "label": label == 1.0}
        fields["source"] = self._responses.source((self._source,), row, problems)
        self.reader.beside(row, fields, problems)
        return problems or CanonicalRow("unpaired", fields)


SHAPE = RowShape(
    "unpaired",
    by_row=UnpairedShape,
    fields=("response",),
    needed=("response",),
    label_example="e.g. `label: {column: label, true: [true], false: [false]}`",
)
