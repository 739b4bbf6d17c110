"""Shape list: the responses of a prompt in one row, with scores, ranks or the index of the best one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dora_core.config.adapter import Adapter
from dora_core.data.adapter.base import RowReader
from dora_core.data.adapter.canonical import Adapted, CanonicalRow, Refused
from dora_core.data.adapter.labels import ListLabel, list_value
from dora_core.data.adapter.paths import Missing
from dora_core.data.adapter.shapes.base import RowShape
from dora_core.data.adapter.weights import PromptWeights
from dora_core.data.problems import Problem, Reason, problem


class ListShape:
    """Reads one row with a list of responses."""

    def __init__(self, adapter: Adapter, columns: Sequence[str], notes: Counter[str]):
        self.reader = RowReader(adapter, columns, notes)
        fields = self.reader.fields
        self.responses = fields.needed("responses")
        self._sources, self._source = fields.path("sources"), fields.path("source")
        self._label = ListLabel(adapter.label, fields.compile, notes, fields.path("rewards"), fields.path("ranks"))
        self._weights = PromptWeights.of(adapter.label, fields.compile)

    def __call__(self, row: dict[str, Any]) -> Adapted:
        problems: list[Problem] = []
        reader, path = self.reader, self.responses
        value = path.get(row)
        if type(value) is Missing:
            return [problem(value.place, Reason.NO_SUCH_PATH, value.detail)]
        values = list_value(value, path, problems)
        given = reader.given(row, problems)
        if values is None:
            return problems or [problem(path.text, Reason.MISSING_RESPONSE, "is null, expected a list of responses")]
        read = reader.messages.reply
        replies = [read(one, path.element(i), problems, "responses") for i, one in enumerate(values)]
        if problems:
            return problems
        prompt, texts = reader.joined(given, replies, problems, (path.text,)) if replies else (given.messages or [], [])
        weights = self._weights(row, prompt, problems) if self._weights is not None else None
        label = self._label(row, len(values), problems, weights)
        fields: dict[str, Any] = {"prompt": prompt, "responses": texts}
        if self._weights is not None and weights is not None:
            fields["goal"] = self._weights.said(weights)
        reader.beside(row, fields, problems)
        if self._sources is not None:
            fields["sources"] = list_value(reader.optional(self._sources, row, problems), self._sources, problems)
        elif self._source is not None:
            fields["sources"] = [reader.optional(self._source, row, problems)] * len(texts)
        if problems or label is None:
            return Refused(problems, CanonicalRow("listwise", fields))
        kind, numbers = label
        if any(number is not None for number in numbers):
            fields["ranks" if kind == "rank" else "rewards"] = numbers
        return CanonicalRow("listwise", fields)


SHAPE = RowShape(
    "list",
    by_row=ListShape,
    fields=("responses", "rewards", "ranks", "sources"),
    needed=("responses",),
)
