"""Base class of every setting and record, and the patterns of names that settings share. Imports only pydantic."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
REVISION_PATTERN = r"^[0-9a-f]{40}$"
ENVIRONMENT_PATTERN = r"^[A-Z_][A-Z0-9_]{0,63}$"


class StrictModel(BaseModel):
    """Base of every setting and record: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
