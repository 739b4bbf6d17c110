"""Shape single: one trusted response per row (golden)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dora_core.config.adapter import Adapter
from dora_core.data.adapter.base import ResponseReader, RowReader
from dora_core.data.adapter.canonical import Adapted, CanonicalRow
from dora_core.data.adapter.shapes.base import RowShape
from dora_core.data.problems import Problem


class SingleShape:
    """Reads one row with one trusted response."""

    def __init__(self, adapter: Adapter, columns: Sequence[str], notes: Counter[str]):
        self.reader = RowReader(adapter, columns, notes)
        self._responses = ResponseReader(self.reader)
        self.response = self.reader.fields.needed("response")

    def __call__(self, row: dict[str, Any]) -> Adapted:
        problems: list[Problem] = []
        given = self.reader.given(row, problems)
        reply = self._responses.reply(self.response, row, problems, "response")
        if problems:
            return problems
        prompt, texts = self.reader.joined(given, [reply], problems, (self.response.text,))
        fields: dict[str, Any] = {"prompt": prompt, "response": texts[0]}
        self.reader.beside(row, fields, problems)
        return problems or CanonicalRow("golden", fields)


SHAPE = RowShape(
    "single",
    by_row=SingleShape,
    fields=("response",),
    needed=("response",),
)
