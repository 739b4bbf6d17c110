"""Problems of an input row: the reasons for which a row goes to quarantine. Imports only the standard library: every format names them."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """Why a row is in quarantine: the machine code in ``quarantine.parquet`` and in the stage's facts."""

    UNPARSABLE = "unparsable"  # not JSON, or bytes that are not UTF-8
    WRONG_TYPE = "wrong_type"
    EMPTY_PROMPT = "empty_prompt"
    PROMPT_MISMATCH = "prompt_mismatch"  # responses that are whole conversations disagree on the prompt
    MISSING_RESPONSE = "missing_response"  # null
    EMPTY_RESPONSE = "empty_response"  # white space only
    IDENTICAL_PAIR = "identical_pair"  # chosen equals rejected: the label contradicts itself
    TOO_FEW_RESPONSES = "too_few_responses"
    TOO_MANY_RESPONSES = "too_many_responses"
    TEXT_TOO_LONG = "text_too_long"
    LONE_SURROGATE = "lone_surrogate"  # half a UTF-16 pair: cannot be written as UTF-8
    RESERVED_CHARACTER = "reserved_character"  # the mark between turns of a response, see response_turns.py
    LENGTH_MISMATCH = "length_mismatch"
    NONFINITE_REWARD = "nonfinite_reward"
    UNKNOWN_SOURCE = "unknown_source"
    DUPLICATE_ID = "duplicate_id"
    NO_SUCH_PATH = "no_such_path"  # a path leads to nothing in this row
    UNKNOWN_LABEL = "unknown_label"  # a label's value is not among the ones that the configuration names
    MISSING_LABEL = "missing_label"  # no approval of an unpaired response
    NOT_A_NUMBER = "not_a_number"  # a score, rank or index that is not a number, or an ambiguous one ("4,5")
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


class Problem(NamedTuple):
    """An error in one field of a row. ``detail`` is short and never quotes a text."""

    field: str
    reason: Reason
    detail: str


def problem(field: str, reason: Reason, detail: str) -> Problem:
    """A problem of one field. ``detail`` names the remedy and never quotes a text."""
    return Problem(field, reason, detail)


REMEDIES: dict[Reason, str] = {
    Reason.UNPARSABLE: "correct the line or take it out",
    Reason.WRONG_TYPE: 'map the part that holds the text, e.g. `columns: {responses: "answers[].text"}`',
    Reason.EMPTY_PROMPT: "map the prompt with `columns: {prompt: …}`, or take the row out",
    Reason.PROMPT_MISMATCH: "write `messages: {differ: cut}` to cut conversations at their first difference, `{learn_turns: all}` to learn "
    "all turns from there on, or take the row out",
    Reason.MISSING_RESPONSE: "map the responses, or take the row out",
    Reason.EMPTY_RESPONSE: "take the row out: a model that says nothing has given no response",
    Reason.IDENTICAL_PAIR: "take the row out: equal responses express no preference",
    Reason.TOO_FEW_RESPONSES: "take the row out, or group rows of one response with `shape: rows`",
    Reason.TOO_MANY_RESPONSES: "raise `data.max_responses`",
    Reason.TEXT_TOO_LONG: "raise `data.max_text_bytes`, or take the row out",
    Reason.LONE_SURROGATE: "export the file again as UTF-8",
    Reason.RESERVED_CHARACTER: "take the character out: Unicode reserves it for use inside a program",
    Reason.LENGTH_MISMATCH: "give one value per response, null where there is none",
    Reason.NONFINITE_REWARD: "write null for a reward that was not measured",
    Reason.UNKNOWN_SOURCE: "add the name to `data.sources`, or correct it",
    Reason.DUPLICATE_ID: "give each row of an input its own id, or write `columns: {id: false}`",
}
"""Next step for reasons whose ``detail`` does not name it."""


def _remedy(found: Problem) -> str:
    """The next step for a problem whose detail names none."""
    if found.reason is Reason.WRONG_TYPE:
        if found.detail.startswith("ends with a message"):
            return "take the row out, or map the turn that belongs to the responses as their beginning"
        name = found.field.partition("[")[0]
        if name in ("id", "task", "source", "sources", "chosen_source", "rejected_source"):
            return f"map a column of names, or write `columns: {{{name}: false}}`"
        if not any(word in found.detail for word in ("struct", "list", "object", "dict")):
            return "correct the value, or take the row out"
    return REMEDIES[found.reason]


def in_words(found: Problem) -> str:
    """A problem as the end of a sentence: field, what was found, the line to write."""
    named = any(word in found.detail for word in ("write `", "map ", "leave the row out", "choose ", "keep one "))
    remedy = "" if named or found.reason not in REMEDIES else f"; {_remedy(found)}"
    return (
        f"{found.field or 'row'} {found.detail}{remedy}"
        if found.detail.startswith(("is ", "holds ", "ends ", "equals ", "has "))
        else (f"{found.field or 'row'}: {found.detail}{remedy}")
    )
