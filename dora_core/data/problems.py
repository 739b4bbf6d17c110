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
    LENGTH_MISMATCH = "length_mismatch"
    NONFINITE_REWARD = "nonfinite_reward"
    UNKNOWN_SOURCE = "unknown_source"
    DUPLICATE_ID = "duplicate_id"


class Problem(NamedTuple):
    """An error in one field of a row. ``detail`` is short and never quotes a text."""

    field: str
    reason: Reason
    detail: str
