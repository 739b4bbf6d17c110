"""Sources that occur with one kind of prompt only."""

from __future__ import annotations

from dora_core.data.suspicion.one_task_source import FEWEST
from tests.dora_core.data.suspicion.given import assert_found, assert_nothing, findings, seen

SUSPICIOUS = [seen(i, sources=("human", "m"), task="math") for i in range(30)] + [seen(sources=("human", "x"), task="home")]
PLAIN = [seen(i, task="math") for i in range(30)] + [seen(task="home")]
MANY = [seen(i, sources=("human", "m"), task="math") for i in range(30)] + [seen(30, sources=("human", "x"), task="home")]


def test_the_sign_is_found() -> None:
    assert_found("one_task_source", SUSPICIOUS)


def test_sound_data_has_no_finding() -> None:
    assert_nothing("one_task_source", PLAIN)


def test_examples_are_the_first_three_rows() -> None:
    (finding,) = findings("one_task_source", MANY)
    assert (finding.count, [at.row for at in finding.examples]) == (30, [0, 1, 2])
    assert finding.text().startswith("1 of 3 sources have one of the 2 kinds of prompts only: m (math, 30 records)")


def test_all_sources_are_in_one_finding_with_a_row_of_each() -> None:
    more = [seen(50 + i, sources=("human", "n"), task="home") for i in range(25)]
    (finding,) = findings("one_task_source", [*MANY, *more])
    assert (finding.count, [at.row for at in finding.examples]) == (55, [0, 50, 1])
    assert "m (math, 30 records), n (home, 25 records)" in finding.message


def test_fewer_records_of_a_source_than_the_bound_say_nothing() -> None:
    few = [seen(i, sources=("human", "m"), task="math") for i in range(FEWEST - 1)]
    assert findings("one_task_source", [*few, seen(sources=("human", "x"), task="home")]) == []
