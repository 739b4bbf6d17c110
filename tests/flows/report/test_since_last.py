"""The policy of a run against that of the last run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.report.since_last import gain_over_last
from infra.store.store import Store
from tasks.runtime.descriptor import StageResult
from tasks.runtime.facts import AnyFacts
from tasks.runtime.spec import StageRef

INPUTS = {"start_samples": StageRef(stage="generate", digest="a" * 64), "start_scores": StageRef(stage="judge", digest="b" * 64)}
SETTINGS = {"evaluate": {"bootstrap_samples": 200, "confidence": 0.9, "seed": 0}}


def compared(store: Store, letter: str, outcomes: dict[str, float | None]) -> StageResult[Any]:
    """A comparison with these outcomes by record; every record has a prompt of its own."""
    folder = store.folder("compare", letter * 64)
    rows = [{"record_id": name, "prompt_hash": int(name[1:]), "outcome_start": value} for name, value in outcomes.items()]
    schema = pa.schema([("record_id", pa.string()), ("prompt_hash", pa.uint64()), ("outcome_start", pa.float64())])
    pq.write_table(pa.Table.from_pylist(rows, schema), folder.path / "comparison.parquet")
    content = {"spec": {}, "inputs": {}, "rows": 1, "metrics": {}, "facts": {}, "started": 0.0, "seconds": 1.0, "python": "3"}
    store.mark_done(folder, content | {"stage": "compare", "digest": letter * 64})  # type: ignore[arg-type]
    facts: Any = AnyFacts()
    return StageResult("compare", letter * 64, SETTINGS, INPUTS, 1, {}, facts, 1.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_outcomes_are_paired_by_record_whatever_their_order(store: Store) -> None:
    """Three records in both: .75 − .5, .5 − .25, 1 − .75: always .25. r9 is in one only, r4 was not measured."""
    now = compared(store, "1", {"r3": 1.0, "r1": 0.75, "r2": 0.5, "r4": None})
    last = compared(store, "2", {"r1": 0.5, "r2": 0.25, "r3": 0.75, "r4": 0.5, "r9": 1.0})
    found = gain_over_last(store, now, last)
    assert found is not None
    assert (found.value, found.low, found.high, found.n) == (pytest.approx(0.25), pytest.approx(0.25), pytest.approx(0.25), 3)


@pytest.mark.parametrize("name", [*INPUTS])
def test_another_start_or_judge_does_not_compare(store: Store, name: str) -> None:
    now, last = compared(store, "1", {"r1": 1.0}), compared(store, "2", {"r1": 0.0})
    assert gain_over_last(store, now, replace(last, inputs=INPUTS | {name: StageRef(stage="judge", digest="c" * 64)})) is None


def test_nothing_to_compare_is_none(store: Store) -> None:
    now, last = compared(store, "1", {"r1": 1.0}), compared(store, "2", {"r2": 0.0})
    assert gain_over_last(store, now, last) is None, "no common record"
    assert gain_over_last(store, now, now) is None and gain_over_last(store, now, None) is None
    assert gain_over_last(store, now, replace(last, digest="3" * 64)) is None, "its table is gone"
