"""Grouping of rows: order, keys, conflicts, flat memory."""

from __future__ import annotations

import random

import psutil
import pytest

from dora_core.config.adapter import Adapter
from dora_core.data.adapter.canonical import CanonicalRow
from dora_core.data.adapter.driver import RowAdapter
from tests.dora_core.data.adapter.reading import read_rows, says

KEYS = {"shape": "rows", "label": {"scores": ["score"]}}


def row(prompt, response, score, **more):
    return {"prompt": prompt, "response": response, "score": score, **more}


def test_groups_come_in_the_order_of_their_first_row_wherever_the_others_are():
    order = [(p, i) for p in range(40) for i in range(3)]
    random.Random(1).shuffle(order)
    rows = [row(f"q{p}", f"r{p}-{i}", i) for p, i in order]
    read = read_rows(rows, KEYS)
    first = {}
    for index, (p, _) in enumerate(order):
        first.setdefault(p, index)
    assert list(read.rows) == sorted(first.values())
    for p, index in first.items():
        (record,) = read.rows[index]
        assert says(record).answers == {f"r{p}-{i}": float(i) for i in range(3)}
        assert record.fields["responses"] == [f"r{q}-{i}" for q, i in order if q == p]
    assert read_rows(rows, KEYS).rows == read.rows


def test_bad_row_is_reported_and_the_rest_of_its_group_stays():
    rows = [row("q", "a", 1), row("q", "b", "4,5"), row("q", "c", 3), row("q", None, 1)]
    read = read_rows(rows, KEYS)
    assert says(read.rows[0][0]).answers == {"a": 1.0, "c": 3.0}
    assert {i: p[0].reason for i, p in read.problems.items()} == {1: "not_a_number", 3: "missing_response"}


def test_context_belongs_to_the_group():
    rows = [row("q", "a", 1, s="one"), row("q", "b", 2, s="two"), row("q", "c", 3, s="one")]
    read = read_rows(rows, {**KEYS, "context": {"system": "s"}})
    assert says(read.rows[0][0]).answers == {"a": 1.0, "c": 3.0}
    assert read.rows[1][0].fields["responses"] == ["b"]


@pytest.mark.parametrize(("name", "values"), [("split", ("train", "test")), ("task", ("x", "y"))])
def test_rows_of_a_group_that_disagree_are_a_problem(name, values):
    rows = [row("q", "a", 1, **{name: values[0]}), row("q", "b", 2, **{name: values[1]})]
    assert read_rows(rows, KEYS).problems[0][0].reason == "group_conflict"


def test_key_of_the_group_becomes_the_id_and_null_keys_are_refused():
    rows = [row("q", "a", 1, k=7), row("q", "b", 2, k=7), row("q", "c", 2, k=None)]
    read = read_rows(rows, {**KEYS, "group": {"by": "k"}})
    assert read.rows[0][0].fields["id"] == 7 and read.problems[2][0].reason == "group_conflict"


def test_approvals_of_one_prompt_can_be_grouped():
    rows = [row("q", "a", True), row("q", "b", False), row("q", "c", None)]
    keys = {"shape": "rows", "label": {"column": "score", "true": [True], "false": [False], "skip": [None]}}
    assert says(read_rows(rows, keys).rows[0][0]).answers == {"a": 1.0, "b": 0.0}


def test_carried_values_are_one_per_response():
    rows = [row("q", "a", 1, who="x"), row("q", "b", 2, who="y")]
    assert read_rows(rows, KEYS).rows[0][0].fields["extra"] == '{"who":["x","y"]}'


@pytest.mark.nightly
@pytest.mark.parametrize("shape", ["rows", "list"])
def test_memory_stays_flat_over_a_million_rows(shape):
    process = psutil.Process()
    text = "Wipe it with a damp cloth. " * 10
    if shape == "rows":
        adapter, columns = Adapter.model_validate(KEYS), ["prompt", "response", "score"]
        rows = ((i, row(f"{text} {i // 2}", text, i % 2)) for i in range(1_000_000))
        records = 500_000
    else:
        keys = {"shape": "list", "columns": {"responses": "done[].out.text", "rewards": "done[].score"}}
        adapter, columns = Adapter.model_validate(keys), ["prompt", "done"]
        rows = ((i, {"prompt": text, "done": [{"out": {"text": text}, "score": k} for k in range(4)]}) for i in range(1_000_000))
        records = 1_000_000
    before, largest, found = process.memory_info().rss, 0, 0
    for index, item in RowAdapter(adapter, columns).rows(rows):
        assert isinstance(item, CanonicalRow)
        found += 1
        if index % 20_000 == 0:
            largest = max(largest, process.memory_info().rss)
    assert found == records
    assert largest - before < 200 * 2**20
