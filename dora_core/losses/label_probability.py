"""Refusal of label probabilities by losses that cannot use them, and of their absence by losses that are nothing without them."""

from __future__ import annotations

from dora_core.errors import DataError
from dora_core.losses.base import PreferenceLoss, registered_losses


def refuse_label_probability(loss: PreferenceLoss, uncertain: int, records: int) -> None:
    """Refuse records with a label probability for a loss that does not read it, and a loss that needs it where no record has it.

    Args:
        uncertain: training records with a label probability other than 1, of all ``records``.

    Raises:
        DataError: one of the two.
    """
    if uncertain and not loss.reads_label_probability:
        able = ", ".join(name for name, known in registered_losses().items() if known.reads_label_probability)
        raise DataError(
            f"{uncertain} of {records} training records have a label_probability below 1, and align.loss.name: {loss.name} would train "
            "on their labels as on certain ones",
            hint=f"set align.loss.name to one that reads it ({able}), or set align.label_probability: ignore to train on the labels as "
            "they are",
        )
    if loss.needs_label_probability and not uncertain:
        raise DataError(
            f"align.loss.name: {loss.name} reads how sure each label is, and none of {records} training records has a label_probability "
            "below 1",
            hint="map a column with data.train[i].columns.label_probability (share of the votes for the preferred response), "
            "or use another loss, such as dpo",
        )
