"""Rows that source classifiers are fitted on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.classifier.model import GOLDEN as GOLDEN_HEAD
from infra.store.store import Store
from tasks.stages._classify_rows import at_most, head_names, heads_of, labelled_rows
from tests.tasks.classified import ingested
from tests.tasks.conftest import GOLDEN
from tests.tasks.stages.conftest import Fitted


@pytest.fixture
def store(fitted: Fitted, tmp_path: Path) -> Store:
    """A copy of ``fitted``'s."""
    return Store(str(shutil.copytree(fitted.root, tmp_path / "store")))


def test_extra_golden_rows_are_positives(store, fitted, tmp_path):
    rows = fitted.rows[:100]
    extra = [{"prompt": f"Another prompt {i}?", "response": f"A trusted answer number {i}."} for i in range(50)]
    records = ingested(store, tmp_path / "extra", rows, extra)
    folder = store.fetch("ingest", records.digest)
    table = labelled_rows(folder, GOLDEN)
    train_extra = sum(s == "train" for s in pq.read_table(folder / "golden.parquet")["split"].to_pylist())
    train = pq.read_table(folder / "records.parquet", filters=[("split", "=", "train")])
    in_mixture = sum(s in GOLDEN for sources in train["sources"].to_pylist() for s in sources)
    assert table["golden"].to_pylist().count(True) == in_mixture + train_extra
    assert not set(head_names(table)) & set(GOLDEN)


def test_of_every_head_the_smallest_keys_stay(fitted: Fitted):
    rows = labelled_rows(Store(str(fitted.root)).fetch("ingest", fitted.records.digest), GOLDEN)
    sources = head_names(rows)
    few, head = at_most(7, rows, sources), heads_of(rows, sources)
    for number in (GOLDEN_HEAD, *range(len(sources))):
        expected = rows.filter(pa.array(head == number))["key"].to_numpy()[:7]
        np.testing.assert_array_equal(few["key"].to_numpy()[heads_of(few, sources) == number], expected)
    assert len(few) == 7 * (len(sources) + 1)
