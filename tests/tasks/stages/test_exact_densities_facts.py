"""Facts of the exact densities: the form in which they are stored."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tasks.stages._exact_densities_facts import Facts

WRITTEN = {"sources": ["human", "bot"], "shares": {"human": 0.25, "bot": 0.75}}


def test_stored_facts_come_back_unchanged() -> None:
    assert Facts.model_validate(WRITTEN).dump() == WRITTEN
    with pytest.raises(ValidationError, match="shares"):
        Facts.model_validate({"sources": ["human"]})
