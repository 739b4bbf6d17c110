"""Votes on a pair: from the values in a row to the number for either response, and the probability that the row's label is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from dora_core.config.label_parts import Votes
from dora_core.data.adapter.labels import TIE, Compile, counting_value, list_value, unknown_value
from dora_core.data.adapter.named_values import NamedValues
from dora_core.data.adapter.numbers import NotANumber, to_number
from dora_core.data.adapter.paths import CompiledPath, Missing
from dora_core.data.problems import Problem, Reason, problem


def label_probability(votes: float, total: float, prior: float) -> float | None:
    """q = (votes + prior)/(total + 2·prior): mean of Beta(prior + votes, prior + total − votes); None without any vote.

    Args:
        votes: for the label, in [0, total]; a tie counts ½.
        prior: pseudo-votes on either side, ≥ 0.
    """
    return (votes + prior) / (total + 2 * prior) if total > 0 else None


class VoteReader:
    """Reads the votes of one row."""

    def __init__(self, votes: Votes, compile_path: Compile, notes: Counter[str]):
        self._votes, self._notes = votes, notes
        self._read: Callable[[dict[str, Any], list[Problem]], tuple[float, float] | None]
        if votes.counts is not None:
            self._counts = [compile_path(path) for path in votes.counts.paths]
            self._read = self._counted
        else:
            assert votes.each is not None
            self._each = compile_path(votes.each)
            self._names = NamedValues({"a": votes.a, "b": votes.b, TIE: votes.tie})
            self._read = self._one_by_one

    def __call__(self, row: dict[str, Any], problems: list[Problem]) -> tuple[float, float] | None:
        """Votes for the first and for the second response, a tie as half a vote for either; None after a problem."""
        votes = self._read(row, problems)
        if votes is not None and not any(votes):
            self._notes["rows without votes"] += 1
        return votes

    def probability(self, own: float, other: float) -> float | None:
        """Probability that a label is right which ``own`` votes are for and ``other`` against; None without votes."""
        q = label_probability(own, own + other, self._votes.prior)
        if q is not None and own < other:
            self._notes["labels that most votes are against"] += 1
        return q

    def _counted(self, row: dict[str, Any], problems: list[Problem]) -> tuple[float, float] | None:
        first, second = (self._count(path, row, problems) for path in self._counts)
        return None if first is None or second is None else (first, second)

    def _count(self, path: CompiledPath, row: dict[str, Any], problems: list[Problem]) -> float | None:
        value = path.get(row)
        if type(value) is Missing:
            if value.absent:
                return 0.0
            problems.append(problem(value.place, Reason.NO_SUCH_PATH, value.detail))
            return None
        try:
            number = to_number(value)
        except NotANumber as error:
            problems.append(problem(path.text, Reason.NOT_A_NUMBER, str(error)))
            return None
        if number is not None and number < 0:
            problems.append(problem(path.text, Reason.NOT_A_NUMBER, f"is {number:g}, expected a number of votes"))
            return None
        return number or 0.0

    def _one_by_one(self, row: dict[str, Any], problems: list[Problem]) -> tuple[float, float] | None:
        before, counted = len(problems), [0.0, 0.0]
        for vote in list_value(counting_value(self._each, row, self._notes), self._each, problems) or ():
            if vote is not None and type(vote) is not Missing:
                share = self._share(vote, problems)
                counted[0] += share
                counted[1] += 1 - share
            elif type(vote) is Missing and not vote.absent:
                problems.append(problem(vote.place, Reason.NO_SUCH_PATH, vote.detail))
        return (counted[0], counted[1]) if len(problems) == before else None

    def _share(self, vote: Any, problems: list[Problem]) -> float:
        """1 for the first response, 0 for the second, ½ for neither."""
        votes = self._votes
        if votes.positive is None:
            name = self._names.of(vote)
            if name is None:
                remedy = "add it to `votes.a`, `votes.b` or `votes.tie`"
                problems.append(unknown_value(self._each.text, vote, self._names.allowed(), remedy))
            return {"a": 1.0, "b": 0.0}.get(name or TIE, 0.5)
        try:
            number = to_number(vote)
        except NotANumber as error:
            problems.append(problem(self._each.text, Reason.NOT_A_NUMBER, str(error)))
            return 0.5
        if number is None or abs(number) <= votes.tie_band:
            return 0.5
        return 1.0 if (number > 0) == (votes.positive == "a") else 0.0
