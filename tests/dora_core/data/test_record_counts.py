"""Counts of records."""

from __future__ import annotations

import pytest

from dora_core.data.record_counts import RecordCounter, is_tie, is_unmeasured, lengths
from dora_core.data.records import Record


def record(rewards: list[float | None], sources: list[str | None], prompt: str = "q") -> Record:
    answers = [f"answer {i}" for i in range(len(rewards))]
    return Record("r", [{"role": "user", "content": prompt}], answers, rewards, sources, "reward", 1, "")


def test_counts_by_hand() -> None:
    counter = RecordCounter()
    # Pairs of (2, 1, 1, null): 2>1 twice, 1=1 once; the null is in none.
    counter.add(record([2.0, 1.0, 1.0, None], ["human", "a", "a", None]), "train")
    counter.add(record([1.0, 1.0], ["human", "a"], prompt="longer"), "eval")
    counter.add(record([1.0, None], ["human", "a"]), "eval")
    found = counter.counts()
    assert found.records == 3 and found.responses == 8
    assert found.splits == {"eval": 2, "train": 1} and found.preferences == {"train": 2}
    assert (found.tied_pairs, found.ties, found.unmeasured, found.unmeasured_responses) == (2, 1, 1, 2)
    human, a, unknown = found.sources["human"], found.sources["a"], found.sources["(unknown)"]
    assert (human.responses, human.measured, human.preferred, human.beaten, human.among) == (3, 3, 2, 0, 0)
    assert (a.responses, a.measured, a.preferred, a.beaten) == (4, 3, 0, 2)
    assert (unknown.responses, unknown.measured) == (1, 0)
    assert found.prompt_chars.longest == 6 and found.response_chars.median == 8


def test_preferences_within_one_source() -> None:
    counter = RecordCounter()
    # Of (3, 2, 1) by human, human, a: 3>2 is between two of human; 3>1 and 2>1 are not. Two unnamed sources are one.
    counter.add(record([3.0, 2.0, 1.0], ["human", "human", "a"]), "train")
    counter.add(record([2.0, 1.0], [None, None]), "train")
    found = counter.counts().sources
    assert (found["human"].among, found["a"].among, found["(unknown)"].among) == (1, 0, 1)


def test_single_responses_are_approvals() -> None:
    counter = RecordCounter()
    for reward in (1.0, 0.0, 0.0, None):
        counter.add(record([reward], ["human"]), "train")
    found = counter.counts()
    assert (found.approved, found.disapproved, found.preferences) == (1, 2, {})
    assert found.unmeasured == 0 and found.unmeasured_responses == 1


@pytest.mark.parametrize(
    ("rewards", "tie", "unmeasured"),
    [([1.0, 1.0], True, False), ([1.0, 0.0], False, False), ([1.0, None], False, True), ([None, None], False, True), ([1.0], False, False)],
)
def test_ties_and_unmeasured(rewards: list[float | None], tie: bool, unmeasured: bool) -> None:
    assert (is_tie(rewards), is_unmeasured(rewards)) == (tie, unmeasured)


def test_lengths() -> None:
    assert lengths([]).longest == 0
    found = lengths(list(range(1, 102)))
    assert (found.p05, found.median, found.p95, found.longest) == (6, 51, 96, 101)
