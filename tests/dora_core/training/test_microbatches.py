"""Every record once, within budget, even; the same for the same step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dora_core.training.microbatches import split_step

LENGTHS = st.lists(st.integers(1, 120), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 5), st.integers(20, 200), st.one_of(st.none(), st.integers(1, 6)))
def test_every_record_is_in_one_micro_batch_within_the_budget(tokens: list[int], ranks: int, budget: int, most: int | None) -> None:
    parts = split_step(tokens, ranks, budget, most)
    assert len(parts) == ranks and len({len(part) for part in parts}) == 1
    batches = [batch for part in parts for batch in part]
    assert sorted(i for batch in batches for i in batch) == list(range(len(tokens)))
    for batch in batches:
        assert batch == sorted(batch)
        assert sum(tokens[i] for i in batch) <= budget or len(batch) == 1
        assert most is None or len(batch) <= most


@given(LENGTHS, st.integers(20, 200))
def test_no_more_micro_batches_than_twice_the_least_possible(tokens: list[int], budget: int) -> None:
    """Any two bins of a best fit hold more than one budget together, so there are fewer than 2 Σ/budget + 1."""
    alone = sum(t > budget for t in tokens)
    packed = sum(t for t in tokens if t <= budget)
    assert len(split_step(tokens, 1, budget)[0]) <= alone + 2 * packed / budget + 1


def test_by_hand() -> None:
    assert split_step([5, 7, 6], 1, 10)[0] == [[1], [2], [0]]  # no two fit together; largest first
    # Best fit: 7+3, 6+4, 2+2+1: three bins. Spread: 7, 6, 4; 3 to the 4; 2 to the 6, then to the first of the 7s; 1 to the other.
    assert split_step([7, 6, 4, 3, 2, 2, 1], 1, 10)[0] == [[0, 5], [1, 4], [2, 3, 6]]


def test_ranks_finish_together() -> None:
    tokens = [10 + 37 * i % 90 for i in range(64)]
    parts = split_step(tokens, 4, 400)
    loads = [sum(tokens[i] for batch in part for i in batch) for part in parts]
    assert max(loads) <= 1.02 * min(loads)
    micro_steps = [[sum(tokens[i] for i in part[step]) for part in parts] for step in range(len(parts[0]))]
    assert all(max(step) <= 1.05 * min(step) for step in micro_steps)


def test_a_rank_short_of_records_gets_empty_micro_batches() -> None:
    assert split_step([5, 4], 4, 10) == [[[0]], [[1]], [[]], [[]]]
