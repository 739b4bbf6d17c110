"""Deaths of workers: poison work or an unhealthy node."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from dora_core.errors import StageFailed
from tasks.runtime.worker_failures import WorkerFailures

LOG = logging.getLogger("test")
GONE = RuntimeError("The actor died unexpectedly.\nactor_id: 1")


def failures(most: int) -> WorkerFailures:
    return WorkerFailures(most, "execution.calibrate", LOG)


@pytest.mark.fault(2)
def test_rows_that_kill_every_worker_are_set_aside_and_named_at_the_end(caplog) -> None:
    met = failures(2)
    assert [met.record("rows 20 to 30", GONE) for _ in range(3)] == [True, True, False]
    assert met.record("rows 0 to 10", GONE), "its deaths are not those of others"
    assert [record.message for record in caplog.records][1:3] == [
        "a worker died: rows 20 to 30, 2 times, is tried again",
        "a worker died: rows 20 to 30, 3 times, is set aside, the others continue",
    ]
    with pytest.raises(StageFailed) as caught:
        met.raise_set_aside()
    message = "the same rows killed every worker that took them: rows 20 to 30 3 times (The actor died unexpectedly.)"
    assert caught.value.message == message and caught.value.__cause__ is GONE
    assert caught.value.hint.startswith("usually out of memory: lower batch_tokens of execution.calibrate")


@pytest.mark.fault(1, 2)
def test_deaths_in_different_places_are_the_machines(caplog) -> None:
    met = failures(2)
    assert met.record("rows 0 to 10", GONE) and met.record(None, GONE)
    with pytest.raises(StageFailed) as caught:
        met.record("rows 10 to 20", GONE)
    places = "rows 0 to 10 once, while starting once, rows 10 to 20 once"
    assert caught.value.message == f"3 workers died in different places: {places} (The actor died unexpectedly.)"
    assert "lower workers or batch_tokens of execution.calibrate" in caught.value.hint


@pytest.mark.fault(2)
def test_a_poison_stage_is_named_as_one_with_the_keys_of_its_section() -> None:
    met = WorkerFailures(1, "execution.default", LOG, "stage", ("batch_tokens", "micro_batch_tokens"))
    assert [met.record("align 1a2b3c4d", GONE) for _ in range(2)] == [True, False]
    failure = met.failure_of("align 1a2b3c4d")
    assert failure.message.startswith("the same stage killed every worker that took it: align 1a2b3c4d 2 times (The actor died")
    assert "lower batch_tokens or micro_batch_tokens of execution.default" in failure.hint
    with pytest.raises(StageFailed, match="4 workers died in different places") as caught:
        for other in ("sft 1", "sft 2", "sft 3"):
            met.record(other, GONE)
    assert "lower workers, batch_tokens or micro_batch_tokens of execution.default" in caught.value.hint


def test_without_a_death_nothing_is_raised() -> None:
    failures(0).raise_set_aside()


@pytest.mark.fault(1)
def test_no_death_is_survived_where_none_may_be() -> None:
    with pytest.raises(StageFailed, match="the same rows killed every worker that took them: rows 0 to 10 once"):
        failures(0).record("rows 0 to 10", GONE)


@pytest.mark.fault(2)
@settings(max_examples=30)
@given(st.integers(0, 4), st.lists(st.integers(-1, 12), min_size=30, max_size=30))
def test_deaths_are_bounded_whoever_dies(most: int, places: list[int]) -> None:
    """Work that was set aside is not tried again, so it kills no worker any more."""
    met, aside, count = failures(most), set[int](), 0
    with pytest.raises(StageFailed):
        for place in places * 40:
            if place not in aside:
                count += 1
                if not met.record(None if place < 0 else f"rows {place}", GONE):
                    aside.add(place)
        met.raise_set_aside()
    assert count <= (most + 1) ** 2 + most**2


@pytest.mark.fault(31)
@pytest.mark.parametrize(
    ("error", "full"), [(ObjectStoreFullError, "Ray's object store is full"), (OutOfDiskError, "the disk that Ray's object")]
)
def test_a_full_object_store_names_the_keys_to_lower(error: type[Exception], full: str) -> None:
    with pytest.raises(StageFailed, match=full) as caught, failures(2).object_store():
        raise error("Failed to put object 00ff\ninto the store")
    assert "(Failed to put object 00ff)" in caught.value.message and not caught.value.retryable
    assert caught.value.hint.startswith("lower workers or shard_rows of execution.calibrate")
    with pytest.raises(KeyError), failures(2).object_store():
        raise KeyError("the code's own")
