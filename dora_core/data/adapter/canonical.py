"""Canonical rows: the form in which every shape hands over a row of the input."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

from dora_core.data.problems import Problem, Reason

CanonicalForm: TypeAlias = Literal["pairwise", "listwise", "golden", "unpaired"]


class CanonicalRow(NamedTuple):
    """A row for ``parse_row``: a prompt as messages, responses as final texts.

    ``fields`` by form, all with ``id``, ``prompt``, ``task``, ``split`` (train, eval or None = by hash), ``weight``,
    ``label_probability``, ``goal`` (text in front of the prompt), ``extra`` (JSON text or None) and ``tools`` (JSON text or None):
    pairwise ``chosen, rejected, chosen_source, rejected_source``; listwise ``responses, rewards`` or ``ranks`` (1 = best), ``sources``;
    golden ``response``; unpaired ``response, label`` (bool), ``source``.
    """

    form: CanonicalForm
    fields: dict[str, Any]


class Refused(list[Problem]):
    """Problems of a row that could be read so far: ``row`` is looked at for further ones."""

    def __init__(self, problems: list[Problem], row: CanonicalRow):
        super().__init__(problems)
        self.row = row


Adapted: TypeAlias = "CanonicalRow | list[Problem] | None"
"""None: the row is left out by decision and counted."""


def is_repetition(value: CanonicalRow | list[Problem], problems: list[Problem]) -> bool:
    """Whether a row without an id repeats an earlier one, which is not a fault of it."""
    if not isinstance(value, CanonicalRow) or value.fields.get("id") not in (None, ""):
        return False
    return [problem.reason for problem in problems] == [Reason.DUPLICATE_ID]
