"""Shape pair: ``chosen`` and ``rejected``, with or without scores.

Paths that end in ``[]`` give several preferred or rejected responses, each of which has the reward 1 or 0.

Without scores the pair is a plain preference. With them the rewards are the scores: equal scores are a tie, and a larger score of the
rejected response is a problem unless ``label.contradiction`` lets the scores decide. A score that is not measured leaves the plain
preference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dora_core.config.adapter import Adapter
from dora_core.data.adapter.base import ResponseReader, RowReader
from dora_core.data.adapter.canonical import Adapted, CanonicalRow, Refused
from dora_core.data.adapter.labels import TwoSided, list_value
from dora_core.data.adapter.messages import Reply
from dora_core.data.adapter.shapes.base import RowShape
from dora_core.data.adapter.votes import VoteReader
from dora_core.data.adapter.weights import PromptWeights
from dora_core.data.problems import Problem, Reason, problem
from dora_core.errors import ConfigError


class PairShape:
    """Reads one row with ``chosen`` and ``rejected``."""

    def __init__(self, adapter: Adapter, columns: Sequence[str], notes: Counter[str]):
        self.reader = RowReader(adapter, columns, notes)
        self.notes, self._responses = notes, ResponseReader(self.reader)
        fields = self.reader.fields
        self.chosen, self.rejected = fields.needed("chosen"), fields.needed("rejected")
        source = fields.path("source")
        self._chosen_source = (fields.path("chosen_source"), source)
        self._rejected_source = (fields.path("rejected_source"), source)
        self._label = TwoSided(adapter.label, fields.compile, notes) if adapter.label is not None else None
        self._weights = PromptWeights.of(adapter.label, fields.compile)
        self._votes = VoteReader(adapter.votes, fields.compile, notes) if adapter.votes is not None else None
        self._scores_decide = getattr(adapter.label, "contradiction", "refuse") == "scores"
        self._names = (self.chosen.text, self.rejected.text)
        self._several = self.chosen.is_list or self.rejected.is_list
        if self._several and (adapter.label is not None or adapter.votes is not None):
            raise ConfigError(
                f"`label` and `votes` are for two responses, and {' and '.join(self._names)} give several",
                hint="take `label` and `votes` away, or write `shape: list` with one path for all responses",
            )

    def __call__(self, row: dict[str, Any]) -> Adapted:
        if self._several:
            return self._lists(row)
        problems: list[Problem] = []
        reader, responses = self.reader, self._responses
        paired = reader.turns_in_lists(row, (self.chosen, self.rejected), problems)
        if paired is not None:
            given, replies = paired
        else:
            given = reader.given(row, problems)
            replies = [responses.reply(self.chosen, row, problems, "chosen"), responses.reply(self.rejected, row, problems, "rejected")]
        if problems:
            return problems
        prompt, texts = reader.joined(given, replies, problems, self._names)
        weights = self._weights(row, prompt, problems) if self._weights is not None else None
        verdict = self._label(row, problems, weights) if self._label is not None else None
        fields: dict[str, Any] = {"prompt": prompt}
        if self._weights is not None and weights is not None:
            fields["goal"] = self._weights.said(weights)
        reader.beside(row, fields, problems)
        votes = self._votes(row, problems) if self._votes is not None else None
        sources = [responses.source(paths, row, problems) for paths in (self._chosen_source, self._rejected_source)]
        if problems:
            return Refused(problems, CanonicalRow("pairwise", {**fields, "chosen": texts[0], "rejected": texts[1]}))
        if self._weights is not None and (verdict is None or verdict.first is None or verdict.second is None):
            return [problem(self._names[0], Reason.MISSING_LABEL, "has no score, and the prompt states weights of scores (`label.say`)")]
        if verdict is None or verdict.first is None or verdict.second is None:
            if verdict is not None:
                self.notes["pairs without both scores, read as plain preferences"] += 1
            if self._votes is not None and votes is not None:
                fields["label_probability"] = self._votes.probability(*votes)
            fields["chosen"], fields["rejected"] = texts
            fields["chosen_source"], fields["rejected_source"] = sources
            return CanonicalRow("pairwise", fields)
        if verdict.first < verdict.second and not self._scores_decide:
            detail = (
                "the rejected response has the "
                f"larger score ({verdict.second:g} > "
                f"{verdict.first:g}); "
                "write `label: "
                "{…, contradiction: scores}` "
                "to let the scores decide, or leave the row out"
            )
            return [problem(self._names[1], Reason.SCORE_CONTRADICTS_LABEL, detail)]
        if texts[0] == texts[1] and verdict.first != verdict.second:
            return [problem(self._names[1], Reason.IDENTICAL_PAIR, "equals the other response, and the scores differ")]
        if verdict.first < verdict.second:
            self.notes["pairs whose scores overrule chosen and rejected"] += 1
        if self._votes is not None and votes is not None and verdict.first != verdict.second:
            fields["label_probability"] = self._votes.probability(*(votes if verdict.first > verdict.second else votes[::-1]))
        fields |= {"responses": texts, "rewards": [verdict.first, verdict.second], "sources": sources}
        return CanonicalRow("listwise", fields)

    def _lists(self, row: dict[str, Any]) -> Adapted:
        """A row with several responses on a side: a list with the rewards 1 and 0."""
        problems: list[Problem] = []
        given, replies = self.reader.given(row, problems), list[Reply]()
        rewards, sources = list[float](), list[Any]()
        sides = ((self.chosen, "chosen", 1.0, self._chosen_source), (self.rejected, "rejected", 0.0, self._rejected_source))
        for path, name, reward, named in sides:
            if path.is_list:
                values = list_value(path.get(row), path, problems) or []
                own = [self.reader.messages.reply(value, path.element(i), problems, name) for i, value in enumerate(values)]
            else:
                own = [self._responses.reply(path, row, problems, name)]
            if not own and not problems:
                problems.append(problem(path.text, Reason.MISSING_RESPONSE, "is null or empty, expected at least one response"))
            source = self._responses.source(named, row, problems)
            replies, rewards = replies + own, rewards + [reward] * len(own)
            sources += source if isinstance(source, list) and len(source) == len(own) else [source] * len(own)
        if problems:
            return problems
        prompt, texts = self.reader.joined(given, replies, problems, self._names)
        fields: dict[str, Any] = {"prompt": prompt, "responses": texts, "rewards": rewards, "sources": sources}
        self.reader.beside(row, fields, problems)
        best = {text.strip() for text, reward in zip(texts, rewards, strict=True) if text and reward}
        if not problems and any(text and text.strip() in best for text, reward in zip(texts, rewards, strict=True) if not reward):
            problems.append(problem(self._names[1], Reason.IDENTICAL_PAIR, f"has a text that is also in {self._names[0]}"))
        return Refused(problems, CanonicalRow("listwise", fields)) if problems else CanonicalRow("listwise", fields)


SHAPE = RowShape(
    "pair",
    by_row=PairShape,
    fields=("chosen", "rejected", "chosen_source", "rejected_source"),
    needed=("chosen", "rejected"),
    two=("chosen", "rejected"),
)
