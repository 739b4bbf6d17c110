"""The refusal of unpaired records names loss, count and remedy."""

from __future__ import annotations

import pytest

from dora_core.errors import DataError
from dora_core.losses import LOSSES, parse_loss
from dora_core.losses.unpaired import refuse_unpaired


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_that_compare_responses_refuse_labels(name: str) -> None:
    loss = parse_loss(name)
    refuse_unpaired(loss, 0, 7)
    if name in ("kto", "bco"):
        refuse_unpaired(loss, 3, 7)
        return
    with pytest.raises(DataError, match=f"^3 of 7 training records are unpaired .* align.loss.name: {name} compares") as error:
        refuse_unpaired(loss, 3, 7)
    assert "set align.loss.name to bco or kto" in error.value.hint and "group: {by: prompt}" in error.value.hint
