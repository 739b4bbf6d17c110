"""Reasons of the adapter for a row's quarantine, beside :class:`dora_core.data.problems.Reason`, and the one way to report a problem."""

from __future__ import annotations

from enum import StrEnum
from typing import cast

from dora_core.data.problems import Problem, Reason


class AdapterReason(StrEnum):
    """Machine codes of rows that an adapter refuses."""

    NO_SUCH_PATH = "no_such_path"  # a path leads to nothing in this row
    UNKNOWN_LABEL = "unknown_label"  # a label's value is not among the ones that the configuration names
    MISSING_LABEL = "missing_label"  # no approval of an unpaired response
    NOT_A_NUMBER = "not_a_number"  # a score, rank or index that is no number, or an ambiguous one ("4,5")
    SCORE_CONTRADICTS_LABEL = "score_contradicts_label"
    UNKNOWN_ROLE = "unknown_role"
    UNKNOWN_SPLIT = "unknown_split"
    TEMPLATED_TEXT = "templated_text"  # text that already holds a chat template
    STRUCTURED_TEXT = "structured_text"  # a list or an object written as text that cannot be parsed, or whose meaning is open
    REASONING = "reasoning"
    TOOL_CALL = "tool_call"
    MEDIA = "media"  # an image, audio or video that a text policy cannot see
    NO_PROMPT_BOUNDARY = "no_prompt_boundary"  # responses that begin with their prompt, with no place to cut
    CONTEXT_CONFLICT = "context_conflict"  # two system prompts in one row
    MIXED_FORMS = "mixed_forms"  # a row has both a pair and a list, and they disagree
    GROUP_CONFLICT = "group_conflict"  # rows of one group differ where they must agree
    BROKEN_TREE = "broken_tree"  # a parent that is not there, a circle, an id given twice


def problem(field: str, reason: Reason | AdapterReason, detail: str) -> Problem:
    """A problem of one field. ``detail`` names the remedy and never quotes a text."""
    return Problem(field, cast(Reason, reason), detail)
