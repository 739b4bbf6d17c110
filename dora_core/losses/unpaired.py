"""Refusal of unpaired records (one response with a label) by losses that compare responses."""

from __future__ import annotations

from dora_core.errors import DataError
from dora_core.losses.base import PreferenceLoss, registered_losses


def unpaired_remedy() -> str:
    """Next step for unpaired records under a loss that does not read them."""
    able = " or ".join(name for name, loss in registered_losses().items() if loss.reads_unpaired)
    return (
        f"set align.loss.name to {able}, which read labels; "
        "or group the rows of a prompt into one record (data.train[i].shape: rows, group: {by: prompt})"
    )


def refuse_unpaired(loss: PreferenceLoss, unpaired: int, records: int) -> None:
    """Refuse unpaired records for a loss that compares responses.

    Args:
        unpaired: training records that are unpaired, of all ``records``.

    Raises:
        DataError: there are some, and the loss does not read them.
    """
    if unpaired and not loss.reads_unpaired:
        raise DataError(
            f"{unpaired} of {records} training records are unpaired (one response with a label), "
            f"and align.loss.name: {loss.name} compares responses of one record",
            hint=unpaired_remedy(),
        )
