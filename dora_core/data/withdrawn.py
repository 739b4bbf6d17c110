"""Rows, messages and annotations that their tool marks as withdrawn: deleted, cancelled, discarded, invalid.

An annotation inside a row, and a message of a tree, that is marked so is never counted (Label Studio's `was_cancelled`, Argilla's `status`,
OASST's `deleted`). A column that marks whole rows needs a decision, because the rows would else be read like all others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_MARK = re.compile(
    r"((is|was)[_-]?)?(deleted|removed|cancell?ed|discarded|withdrawn|retracted|excluded|invalid|spam|skipped)", re.IGNORECASE
)
_SOUND = re.compile(r"(is[_-]?)?valid", re.IGNORECASE)
_STATUS = re.compile(r"((record|response|row|annotation|review|submission)[_-]?)?(status|state)", re.IGNORECASE)
_OF_ANNOTATION = frozenset({"discarded", "deleted", "cancelled", "canceled", "withdrawn", "draft", "pending"})
_OF_ROW = _OF_ANNOTATION | {"rejected", "removed", "invalid", "skipped", "returned", "timed-out", "timed_out", "spam"}
_YES, _NO = frozenset({"true", "1", "yes"}), frozenset({"false", "0", "no"})
_KEYS = ("was_cancelled", "cancelled", "deleted", "is_deleted", "discarded")


def is_withdrawn(item: Any) -> bool:
    """Whether an annotation or a message is marked as withdrawn by one of its own keys."""
    if not isinstance(item, Mapping):
        return False
    return any(item.get(key) is True for key in _KEYS) or is_withdrawn_status(item.get("status"))


def is_withdrawn_status(status: Any) -> bool:
    """Whether the status of an annotation says that it does not count."""
    return isinstance(status, str) and status.strip().casefold() in _OF_ANNOTATION


def may_mark_rows(column: str) -> bool:
    """Whether a column has the name of a mark of whole rows."""
    return any(pattern.fullmatch(column) for pattern in (_MARK, _SOUND, _STATUS))


def marks_in(column: str, values: Sequence[Any]) -> list[Any]:
    """Those of a column's values that mark their row as withdrawn, each once; empty for a column of another kind."""
    for pattern, marks in ((_MARK, _YES), (_SOUND, _NO), (_STATUS, _OF_ROW)):
        if pattern.fullmatch(column):
            return list(dict.fromkeys(value for value in values if _form(value) in marks))
    return []


def _form(value: Any) -> str:
    """A mark as text: ``true`` for True, ``1`` for 1.0; empty for a value that is none."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else ""
    return str(value).strip().casefold() if isinstance(value, str | bool | int) else ""
