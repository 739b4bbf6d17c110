"""What deaths of workers mean: one bad shard, or the machine."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dora_core.errors import StageFailed
from tasks.runtime.worker_failures import Deaths

LOG = logging.getLogger("test")
GONE = RuntimeError("The actor died unexpectedly.\nactor_id: 1")


def deaths(most: int) -> Deaths:
    return Deaths(most, "calibrate", LOG)


@pytest.mark.fault(2)
def test_rows_that_kill_every_worker_are_set_aside_and_named_at_the_end(caplog) -> None:
    met = deaths(2)
    assert [met.count("rows 20 to 30", GONE) for _ in range(3)] == [True, True, False]
    assert met.count("rows 0 to 10", GONE), "its deaths are not those of others"
    assert [record.message for record in caplog.records][1:3] == [
        "a worker died: rows 20 to 30, 2 times, is tried again",
        "a worker died: rows 20 to 30, 3 times, is set aside, the others go on",
    ]
    with pytest.raises(StageFailed) as caught:
        met.raise_those_set_aside()
    message = "the same rows killed every worker that took them: rows 20 to 30 3 times (The actor died unexpectedly.)"
    assert caught.value.message == message and caught.value.__cause__ is GONE
    assert caught.value.hint.startswith("usually out of memory: lower batch_tokens of execution.calibrate")


@pytest.mark.fault(1, 2)
def test_deaths_in_different_places_are_the_machines(caplog) -> None:
    met = deaths(2)
    assert met.count("rows 0 to 10", GONE) and met.count(None, GONE)
    with pytest.raises(StageFailed) as caught:
        met.count("rows 10 to 20", GONE)
    places = "rows 0 to 10 once, while starting once, rows 10 to 20 once"
    assert caught.value.message == f"3 workers died in different places: {places} (The actor died unexpectedly.)"
    assert "lower workers or batch_tokens of execution.calibrate" in caught.value.hint


def test_without_a_death_nothing_is_raised() -> None:
    deaths(0).raise_those_set_aside()


@pytest.mark.fault(1)
def test_no_death_is_survived_where_none_may_be() -> None:
    with pytest.raises(StageFailed, match="the same rows killed every worker that took them: rows 0 to 10 once"):
        deaths(0).count("rows 0 to 10", GONE)


@pytest.mark.fault(2)
@settings(max_examples=30)
@given(st.integers(0, 4), st.lists(st.integers(-1, 12), min_size=30, max_size=30))
def test_deaths_are_bounded_whoever_dies(most: int, places: list[int]) -> None:
    """A shard that was set aside is not tried again, so it kills nobody any more."""
    met, aside, count = deaths(most), set[int](), 0
    with pytest.raises(StageFailed):
        for place in places * 40:
            if place not in aside:
                count += 1
                if not met.count(None if place < 0 else f"rows {place}", GONE):
                    aside.add(place)
        met.raise_those_set_aside()
    assert count <= (most + 1) ** 2 + most**2
