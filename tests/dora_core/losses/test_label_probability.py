"""Label probabilities are refused by losses on lists, and missed by losses that are nothing without them."""

from __future__ import annotations

import pytest

from dora_core.errors import DataError
from dora_core.losses import LOSSES, parse_loss
from dora_core.losses.label_probability import refuse_label_probability


def test_losses_on_pairs_read_label_probabilities() -> None:
    refuse_label_probability(parse_loss("dpo"), 3, 7)
    refuse_label_probability(parse_loss("kto"), 0, 7)


@pytest.mark.parametrize("name", sorted(name for name, loss in LOSSES.items() if not loss.reads_label_probability))
def test_the_others_refuse_them(name: str) -> None:
    refuse_label_probability(parse_loss(name), 0, 7)
    with pytest.raises(DataError, match=f"^3 of 7 training records have a label_probability below 1, and align.loss.name: {name}") as error:
        refuse_label_probability(parse_loss(name), 3, 7)
    assert "dpo" in error.value.hint and "align.label_probability: ignore" in error.value.hint


@pytest.mark.parametrize("name", sorted(name for name, loss in LOSSES.items() if loss.needs_label_probability))
def test_a_loss_that_is_another_one_without_them_asks_for_the_column(name: str) -> None:
    refuse_label_probability(parse_loss(name), 1, 7)
    with pytest.raises(DataError, match="none of 7 training records has a label_probability below 1") as error:
        refuse_label_probability(parse_loss(name), 0, 7)
    assert "columns.label_probability" in error.value.hint
