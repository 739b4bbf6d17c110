"""Arrow batches as Python rows."""

from __future__ import annotations

import pyarrow as pa

from dora_core.data.arrow_rows import numbered_rows
from dora_core.data.problems import Problem, Reason


def test_rows_are_numbered_over_batches_and_keyed_by_field() -> None:
    batches = [pa.record_batch({"q": ["a", "b"], "n": [1, 2]}), pa.table({"q": ["c"], "n": [3]})]
    assert list(numbered_rows(batches, {"prompt": "q", "id": "n"})) == [
        (0, {"prompt": "a", "id": 1}),
        (1, {"prompt": "b", "id": 2}),
        (2, {"prompt": "c", "id": 3}),
    ]


def test_two_fields_may_read_one_column() -> None:
    assert list(numbered_rows([pa.record_batch({"q": ["a"]})], {"prompt": "q", "id": "q"})) == [(0, {"prompt": "a", "id": "a"})]


def test_a_value_without_a_python_counterpart_costs_its_row_alone() -> None:
    text = pa.array([b"a", b"\xff", b"c"]).cast(pa.binary()).view(pa.string())
    year = pa.array([0, 0, 2**62], pa.timestamp("ms"))
    assert [row for _, row in numbered_rows([pa.record_batch({"q": text, "t": year})], {"prompt": "q", "task": "t"})][1:] == [
        Problem("prompt", Reason.UNPARSABLE, "a text is not UTF-8 at byte 0"),
        Problem("task", Reason.UNPARSABLE, "no Python value: OverflowError"),
    ]
