"""Ragged arrays against lists."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dora_core.models.ragged import Ragged

LISTS = st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=6)


def as_lists(ragged: Ragged) -> list[list[int]]:
    return [ragged.values[a:b].tolist() for a, b in zip(ragged.start, ragged.start[1:], strict=False)]


@given(LISTS, st.data())
def test_ragged_arrays_behave_as_lists(lists, data):
    ragged = Ragged.of(lists)
    assert as_lists(ragged) == lists and len(ragged) == len(lists)
    assert ragged.positions.tolist() == [i for values in lists for i in range(len(values))]
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=8))
    assert as_lists(ragged[np.array(rows, dtype=np.int64)]) == [lists[i] for i in rows]
    skip = [data.draw(st.integers(0, len(values))) for values in lists]
    assert as_lists(ragged.tails(np.array(skip))) == [values[k:] for values, k in zip(lists, skip, strict=True)]
    longest = max(map(len, lists))
    assert ragged.padded(-1).tolist() == [values + [-1] * (longest - len(values)) for values in lists]


def test_nothing_is_an_array_too():
    empty = Ragged.of([])
    assert len(empty) == 0 and as_lists(empty[np.zeros(0, dtype=np.int64)]) == []
