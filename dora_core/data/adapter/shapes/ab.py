"""Shape ab: responses A and B, and a label that says which is better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dora_core.config.adapter import Adapter
from dora_core.data.adapter.base import ResponseReader, RowReader
from dora_core.data.adapter.canonical import Adapted, CanonicalRow
from dora_core.data.adapter.labels import TwoSided, majority
from dora_core.data.adapter.shapes.base import RowShape
from dora_core.data.adapter.votes import VoteReader
from dora_core.data.adapter.weights import PromptWeights
from dora_core.data.problems import Problem, Reason, problem


class AbShape:
    """Reads one row with two responses and a label. A preference becomes a pair; ties, scores and ranks a list of two."""

    def __init__(self, adapter: Adapter, columns: Sequence[str], notes: Counter[str]):
        self.reader = RowReader(adapter, columns, notes)
        self._responses = ResponseReader(self.reader)
        fields = self.reader.fields
        self.a, self.b = fields.needed("a"), fields.needed("b")
        source = fields.path("source")
        self._sources = ((fields.path("a_source"), source), (fields.path("b_source"), source))
        self._label = TwoSided(adapter.label, fields.compile, notes) if adapter.label is not None else None
        self._weights = PromptWeights.of(adapter.label, fields.compile)
        self._votes = VoteReader(adapter.votes, fields.compile, notes) if adapter.votes is not None else None
        self._names = (self.a.text, self.b.text)

    def __call__(self, row: dict[str, Any]) -> Adapted:
        problems: list[Problem] = []
        reader, responses = self.reader, self._responses
        paired = reader.turns_in_lists(row, (self.a, self.b), problems)
        if paired is not None:
            given, replies = paired
        else:
            given = reader.given(row, problems)
            replies = [responses.reply(self.a, row, problems, "a"), responses.reply(self.b, row, problems, "b")]
        if problems:
            return problems
        prompt, texts = reader.joined(given, replies, problems, self._names)
        weights = self._weights(row, prompt, problems) if self._weights is not None else None
        votes = self._votes(row, problems) if self._votes is not None else None
        verdict = self._label(row, problems, weights) if self._label is not None else None if votes is None else majority(*votes)
        fields: dict[str, Any] = {"prompt": prompt}
        if self._weights is not None and weights is not None:
            fields["goal"] = self._weights.said(weights)
        reader.beside(row, fields, problems)
        sources = [responses.source(paths, row, problems) for paths in self._sources]
        if problems or verdict is None:
            return problems
        first, second = verdict.first, verdict.second
        if first is not None and second is not None and first != second:
            if self._votes is not None and votes is not None:
                one, other = votes if (first > second) != (verdict.kind == "rank") else votes[::-1]
                fields["label_probability"] = self._votes.probability(one, other)
            if (texts[0] or "").strip() == (texts[1] or "").strip():
                return [problem(self._names[1], Reason.IDENTICAL_PAIR, f"equals {self._names[0]}, and the label prefers one of them")]
            if verdict.kind == "preference":
                better, worse = (0, 1) if first > second else (1, 0)
                fields |= {"chosen": texts[better], "rejected": texts[worse]}
                fields |= {"chosen_source": sources[better], "rejected_source": sources[worse]}
                return CanonicalRow("pairwise", fields)
        numbers = "ranks" if verdict.kind == "rank" else "rewards"
        fields |= {"responses": texts, numbers: [first, second], "sources": sources}
        return CanonicalRow("listwise", fields)


SHAPE = RowShape(
    "ab",
    by_row=AbShape,
    fields=("a", "b", "a_source", "b_source"),
    needed=("a", "b"),
    two=("a", "b"),
    label_example="e.g. `label: {column: winner, a: model_a, b: model_b, tie: [tie]}`, or `label: {scores: [{a: score_a, b: score_b}]}`, "
    "or `votes: {counts: {a: votes_a, b: votes_b}}`",
)
