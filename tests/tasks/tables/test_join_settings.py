"""Every setting of the join is one that the join knows."""

from __future__ import annotations

from typing import get_args

import numpy as np

from dora_core.calibration import aggregate
from tasks.tables.join_settings import Aggregate, TrustUse


def test_calibration_knows_every_aggregate() -> None:
    # Two responses of one record with h 1 and 4, the first chosen: mean 2.5, min 1, chosen 1, product 4.
    found = {
        name: float(aggregate(np.array([1.0, 4.0]), np.zeros(2, int), name, np.array([True, False]))[0]) for name in get_args(Aggregate)
    }
    assert found == {"mean": 2.5, "min": 1.0, "chosen": 1.0, "product": 4.0}
    assert get_args(TrustUse) == ("soft_label", "weight")
