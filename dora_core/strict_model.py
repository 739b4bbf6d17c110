"""Base class of every setting and record, and the patterns of names that settings share. Imports only pydantic."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
REVISION_PATTERN = r"^[0-9a-f]{40}$"
ENVIRONMENT_PATTERN = r"^[A-Z_][A-Z0-9_]{0,63}$"


class StrictModel(BaseModel):
    """Base of every setting and record: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def evolve(self, **changes: Any) -> Self:
        """Return a copy with changed fields, validated as a new model is; pydantic's ``model_copy(update=…)`` validates nothing.

        Fields that were left at their defaults still count as unset in the copy.

        Args:
            changes: new values by field name.

        Raises:
            ValidationError: a value is not allowed, or a field has no such name.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return self.model_validate(given | changes, by_alias=True, by_name=True)


def is_unset(value: object) -> bool:
    """For ``exclude_if``: as :func:`is_empty`, for a field whose empty values other than None mean something."""
    return value is None


def is_empty(value: object) -> bool:
    """For ``exclude_if``: a field added later, at its empty default, stays out of dumps, so digests of before are found again."""
    return not value
