"""Settings of trust and exchange rates."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dora_core.config.valuation import ExchangeConfig, TrustConfig


def test_training_does_not_change_unless_asked() -> None:
    assert TrustConfig().apply == "off" and TrustConfig().method == "auto" and not ExchangeConfig().enabled


@pytest.mark.parametrize("wrong", [{"method": "votes"}, {"apply": "yes"}, {"min_overlap": 1}, {"labeller": ""}])
def test_unknown_values_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrustConfig.model_validate(wrong)
