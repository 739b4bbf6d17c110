"""Unpaired records: one response with a label, desirable or undesirable.

Convention of ``records.parquet``: ``reward_kind`` is :data:`LABEL`, ``responses`` has one element and its reward is 1 (desirable) or 0
(undesirable). The kind alone makes a record unpaired: a list of which one response is measured is not. Such records train under losses
with ``reads_unpaired``; all other readers of preferences see a record without a pair.
"""

from __future__ import annotations

from dora_core.errors import DataError

LABEL = "label"
"""``reward_kind`` of an unpaired record."""


def is_desirable(rewards: list[float | None]) -> bool:
    """Label of an unpaired record by its one reward."""
    return rewards[0] is not None and rewards[0] > 0


def check_unpaired(record_id: str, rewards: list[float | None]) -> None:
    """Check one unpaired record.

    Raises:
        DataError: not exactly one response with reward 0 or 1.
    """
    if len(rewards) != 1 or rewards[0] not in (0.0, 1.0):
        raise DataError(
            f"record {record_id} has reward_kind {LABEL} and the rewards {rewards}, expected one reward, 1 (desirable) or 0 (undesirable)",
            hint="records of this kind come from inputs of shape unpaired; write lists with reward_kind reward",
        )
