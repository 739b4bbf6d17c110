"""Copies and selections by content: deterministic, in the expected number, and stable when rows are added."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from dora_core.data.mixing import Selection, copies


def keys(count: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.getrandbits(128) for _ in range(count)]


def test_copies_have_the_expected_number() -> None:
    assert {copies(key, 1) for key in keys(50)} == {1} and {copies(key, 3) for key in keys(50)} == {3}
    drawn = [copies(key, 1.25) for key in keys(4000)]
    assert set(drawn) == {1, 2} and abs(sum(drawn) / 4000 - 1.25) < 0.03
    assert abs(sum(copies(key, 0.3) for key in keys(4000)) / 4000 - 0.3) < 0.03


def test_more_weight_never_takes_a_record_away() -> None:
    assert all(copies(key, 0.2) <= copies(key, 0.7) <= copies(key, 1.1) for key in keys(500))


@settings(max_examples=30)
@given(st.integers(0, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_selection_has_its_size_and_new_records_move_others_only_by_taking_their_place(count: int, size: int, seed: int) -> None:
    old, new = keys(count, seed), keys(10, seed + 1)
    before, after = Selection(old, size), Selection([*old, *new], size)
    chosen, later = {key for key in old if key in before}, {key for key in [*old, *new] if key in after}
    assert len(chosen) == min(size, count) and len(later) == min(size, count + 10)
    assert later - set(new) <= chosen, "no old record comes in because of new ones"
    assert chosen == {key for key in old[::-1] if key in Selection(old[::-1], size)}


def test_equal_contents_share_a_place() -> None:
    selection = Selection([5, 5, 5, 7], 2)
    assert 5 in selection and 7 in selection
