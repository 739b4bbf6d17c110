"""The row cache: only new rows are computed, a crash loses no finished shard, damage is noticed, memory is bounded."""

from __future__ import annotations

import logging
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.config.execution import Execution
from dora_core.errors import DataError
from infra.store.journal import JournalWriter
from infra.store.store import Store
from tasks.runtime import score_cache as cache_module
from tasks.runtime.score_cache import CachedRows, score_rows
from tasks.runtime.stage import StageContext
from tasks.runtime.workers import Worker

FOLDER = "scores/model"


class Squares(Worker):
    """key → key² and a weight of 1; notes its keys and fails once at a given one."""

    def __init__(self, calls: str, fail_at: int | None = None):
        self.calls, self.fail_at = Path(calls), fail_at

    def __call__(self, rows: pa.Table) -> pa.Table:
        keys = rows["key"].to_numpy()
        if self.fail_at in keys.tolist():
            raise DataError("stopped")
        with self.calls.open("a") as file:
            file.write("".join(f"{k}\n" for k in keys))
        return pa.table({"key": keys, "square": keys.astype(np.float64) ** 2, "tokens": np.ones(len(keys), np.int64)})


@pytest.fixture
def context(tmp_path) -> StageContext:
    store = Store(str(tmp_path / "store"))
    folder = store.folder("calibrate", "0" * 64)
    return StageContext(store, folder, JournalWriter(folder), logging.getLogger("test"))


def score(context, tmp_path, keys, shard_rows=4, tables=None, **arguments):
    key_N = np.array(keys, dtype=np.uint64)

    def rows(positions):
        for part in np.array_split(positions, -(-len(positions) // 3)):
            yield pa.table({"key": key_N[part]})

    return score_rows(
        context,
        CachedRows(context, FOLDER),
        key_N,
        rows,
        summed=["tokens"],
        name="squares",
        worker=partial(Squares, str(tmp_path / "calls.txt"), **arguments),
        execution=Execution(workers=0, shard_rows=shard_rows),
        unit="rows",
    )


def calls(tmp_path) -> list[int]:
    path = tmp_path / "calls.txt"
    found = [int(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def parts(context) -> list[Path]:
    return sorted((context.store.local_root / FOLDER).glob("*.parquet"))


def test_rows_are_scored_once_and_come_back_in_their_order(context, tmp_path):
    keys = [9, 3, 9, 5, 2**64 - 1, 3, 7]
    scores = score(context, tmp_path, keys)
    assert calls(tmp_path) == [9, 3, 5, 2**64 - 1, 7], "in row order, a repeated text once"
    assert scores.rows()["square"].tolist() == [float(k) ** 2 for k in keys]
    assert scores.rows(2, 4)["square"].tolist() == [81.0, 25.0]
    assert list(scores.columns) == ["square"] and scores.totals == {"tokens": 5.0}
    assert (scores.facts.scored_rows, scores.facts.reused_rows) == (5, 2) and scores.facts.rows_per_second > 0


def test_only_new_rows_are_computed_and_old_values_stay(context, tmp_path):
    score(context, tmp_path, range(10))
    calls(tmp_path)
    scores = score(context, tmp_path, [*range(5, 13), 5])
    assert calls(tmp_path) == [10, 11, 12]
    assert scores.rows()["square"].tolist() == [float(k) ** 2 for k in [*range(5, 13), 5]]
    assert (scores.facts.scored_rows, scores.facts.reused_rows) == (3, 6)
    again = score(context, tmp_path, range(13))
    assert calls(tmp_path) == [] and again.facts.rows_per_second is None and len(parts(context)) == 2


def test_after_a_crash_finished_shards_are_not_computed_again(context, tmp_path):
    with pytest.raises(DataError, match="stopped"):
        score(context, tmp_path, range(12), fail_at=9)
    assert calls(tmp_path) == list(range(8)) and not list((context.store.local_root / FOLDER).iterdir())
    scores = score(context, tmp_path, range(12))
    assert calls(tmp_path) == [8, 9, 10, 11]
    assert scores.rows()["square"].tolist() == [float(k) ** 2 for k in range(12)]


def test_parts_are_named_by_their_content_and_a_damaged_one_is_not_read(context, tmp_path, caplog):
    score(context, tmp_path, range(6))
    score(context, tmp_path, range(9))
    calls(tmp_path)
    shutil.rmtree(context.scratch)  # as a finished stage does
    first = next(p for p in parts(context) if len(pq.read_table(p)) == 6)
    first.write_bytes(first.read_bytes()[:-20] + b"x" * 20)
    with caplog.at_level(logging.WARNING):
        score(context, tmp_path, range(9))
    assert calls(tmp_path) == list(range(6)) and "damaged" in caplog.text
    assert not list((context.store.local_root / FOLDER).glob(".*"))


def test_a_cache_larger_than_the_request_is_read_in_pieces(context, tmp_path, monkeypatch):
    """Unwanted rows of a part are never all in memory, nor are the new ones while they are written."""
    monkeypatch.setattr(cache_module, "ROW_GROUP", 5)
    score(context, tmp_path, range(23))
    assert [len(table) for table in CachedRows(context, FOLDER).tables()] == [5, 5, 5, 5, 3]
    scores = score(context, tmp_path, [22, 4])
    assert scores.rows()["square"].tolist() == [484.0, 16.0] and len(scores.columns["square"]) == 2
