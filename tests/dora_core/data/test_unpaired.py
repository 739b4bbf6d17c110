"""The convention of unpaired records."""

from __future__ import annotations

import pytest

from dora_core.data.unpaired import check_unpaired, is_desirable
from dora_core.errors import DataError


def test_a_label_is_a_reward_of_1_or_0() -> None:
    check_unpaired("a", [1.0])
    check_unpaired("b", [0.0])
    assert is_desirable([1.0]) and not is_desirable([0.0])


@pytest.mark.parametrize("rewards", [[], [None], [0.5], [2.0], [1.0, 0.0], [float("nan")]], ids=str)
def test_anything_else_is_refused_with_the_record(rewards: list[float | None]) -> None:
    with pytest.raises(DataError, match="record c has reward_kind label and the rewards"):
        check_unpaired("c", rewards)
