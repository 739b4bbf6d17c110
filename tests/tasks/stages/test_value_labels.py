"""Labels of a mixture: their sources, pairs of lists, and pairs labelled twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.config.valuation import ExchangeConfig
from dora_core.data.records import RECORDS_SCHEMA, hash_prompt
from dora_core.errors import DataError
from tasks.stages._value_labels import (
    GOLDEN,
    LEAST_LABELS,
    NO_PREFERENCE,
    OTHERS,
    SEVERAL,
    UNNAMED,
    _groups,
    find_overlap,
    label_of,
    label_pairs,
    label_sources,
    proxy_pairs,
    read_labels,
)


def record(number: int, prompt: str, responses: list[str], rewards: list[Any], sources: list[Any], **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    row: dict[str, Any] = dict.fromkeys(RECORDS_SCHEMA.names) | {"record_id": f"r{number}", "prompt": messages, "responses": responses}
    row |= {"rewards": rewards, "sources": sources, "reward_kind": "reward", "split": "train", "prompt_hash": hash_prompt(messages)}
    return row | changes


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, schema=RECORDS_SCHEMA), path)
    return path


def test_the_source_of_a_label() -> None:
    def of(sources: list[Any], rewards: list[Any], labeller: str | None = None, extra: str | None = None) -> tuple[str | None, bool]:
        row = {"sources": sources, "rewards": rewards, "extra": extra, "reward_kind": "reward"}
        return label_of(row, label_sources(row, ["human", "crowd-*"], labeller))

    assert of(["human", "crowd-7"], [1.0, 0.0]) == (GOLDEN, True)
    assert of(["human", "bot"], [1.0, 0.0]) == ("bot", False)
    assert of(["a", "b"], [1.0, 0.0]) == (SEVERAL, False)
    assert of([None, "human"], [1.0, 0.0]) == (UNNAMED, False)
    assert of(["human", "human"], [1.0, None]) == of(["human", "human"], [1.0, 1.0]) == (None, False)
    # The best and the worst decide; a pair of two golden responses within the list is golden all the same.
    assert of(["human", "bot", "human"], [2.0, 1.0, 0.0]) == (GOLDEN, True)
    assert of(["bot", "human", "human"], [2.0, 1.0, 0.0]) == ("bot", True)
    assert of(["bot", "human", "human"], [2.0, 0.0, 0.0]) == ("bot", False)
    by = json.dumps({"annotator": "judge-1"})
    assert of(["human", "human"], [1.0, 0.0], "annotator", by) == ("judge-1", False)
    assert of(["bot", "bot"], [1.0, 0.0], "annotator", json.dumps({"annotator": "crowd-3"})) == (GOLDEN, True)
    assert of(["bot", "bot"], [1.0, 0.0], "annotator", json.dumps({"other": 1})) == ("bot", False)


def test_every_pair_of_a_mixed_list_has_its_own_source(tmp_path: Path) -> None:
    rows = [record(i, f"p{i}", ["x", "y"], [1.0, 0.0], [name] * 2) for i, name in enumerate(["a", "b"] * LEAST_LABELS)]
    rows += [
        record(100 + i, f"q{i}", ["v", "w", "x", "y"], [3.0, 2.0, 1.0, 0.0], ["human", "human", "a", "b"]) for i in range(LEAST_LABELS)
    ]
    rows += [record(200 + i, f"r{i}", ["x", "y"], [1.0, 0.0], ["a", "b"]) for i in range(LEAST_LABELS)]
    path = written(tmp_path / "records.parquet", rows)
    labels = read_labels(path, None, "mean", ["human"], None, 8)
    assert labels.names == [GOLDEN, "b", "a", SEVERAL] and labels.golden_prompts == LEAST_LABELS
    pairs, _, record_P = proxy_pairs(path, labels, np.array([2 * LEAST_LABELS]), ExchangeConfig(folds=2, buckets=16))
    assert [labels.names[g] for g in pairs.group_P] == [GOLDEN, "a", "b", "a", "b", SEVERAL] and set(record_P) == {2 * LEAST_LABELS}


def test_small_and_surplus_sources_are_pooled() -> None:
    counts = Counter({"a": 90, "b": 50, "c": 40, "d": LEAST_LABELS - 1})
    assert _groups(counts, 8) == ([GOLDEN, "a", "b", "c", OTHERS], {"d"})
    assert _groups(counts, 2) == ([GOLDEN, "a", OTHERS], {"b", "c", "d"})
    assert _groups(Counter({"a": 90}), 2) == ([GOLDEN, "a"], set())


def test_pairs_of_a_list_weigh_one_record(tmp_path: Path) -> None:
    rows = [
        record(0, "p", ["best one", "middle two", "worst three"], [2.0, 1.0, 0.0], ["bot"] * 3),
        record(1, "q", ["same", "same too"], [1.0, 1.0], ["bot"] * 2),
        record(2, "q", ["left", "right"], [0.0, 1.0], ["human"] * 2),
        record(3, "q", ["only"], [1.0], ["bot"], reward_kind="label"),
    ]
    path = written(tmp_path / "records.parquet", rows)
    labels = read_labels(path, None, "mean", ["human"], None, 8)
    assert labels.names == [GOLDEN, OTHERS] and labels.group_R.tolist() == [1, NO_PREFERENCE, 0, NO_PREFERENCE]
    pairs, features, record_P = proxy_pairs(path, labels, labels.sample(10, 0), ExchangeConfig(folds=3, buckets=32))
    assert record_P.tolist() == [0, 0, 0, 2] and pairs.weight_P == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    assert features.text is not None
    values = features.text(["p"] * 3 + ["q"] * 2, ["best one", "middle two", "worst three", "right", "left"])
    assert pairs.difference_PD == pytest.approx(values[[0, 0, 1, 3]] - values[[1, 2, 2, 4]])
    # The label of a record is its best response against its worst.
    (found,) = label_pairs(path, labels, features)
    assert found[0].tolist() == [0, 2] and found[1] == pytest.approx(values[[0, 3]] - values[[2, 4]])


def test_a_sample_is_the_same_prompts_for_more_records(tmp_path: Path) -> None:
    rows = [record(i, f"p{i}", ["x", "y"], [1.0, 0.0], ["human" if i % 2 else "bot"] * 2) for i in range(80)]
    labels = read_labels(written(tmp_path / "records.parquet", rows), None, "mean", ["human"], None, 8)
    few, more = labels.sample(5, 0), labels.sample(10, 0)
    assert len(few) == 10 and len(more) == 20 and set(few) < set(more)
    assert np.bincount(labels.group_R[few]).tolist() == [5, 5]


def test_the_factor_of_a_record(tmp_path: Path) -> None:
    rows = [record(i, f"p{i}", ["x", "y"], [1.0, 0.0], ["human"] * 2) for i in range(2)]
    path, factors = written(tmp_path / "records.parquet", rows), tmp_path / "calibration.parquet"
    pq.write_table(pa.table({"record_id": ["r0", "r0", "r1", "r1"], "h": [1.0, 2.0, 3.0, 5.0]}), factors)
    assert read_labels(path, factors, "mean", ["human"], None, 8).factor_R.tolist() == [1.5, 4.0]
    assert read_labels(path, factors, "chosen", ["human"], None, 8).factor_R.tolist() == [1.0, 3.0]
    pq.write_table(pa.table({"record_id": ["r1", "r1", "r0", "r0"], "h": [1.0, 2.0, 3.0, 5.0]}), factors)
    with pytest.raises(DataError, match="does not go with the records"):
        read_labels(path, factors, "mean", ["human"], None, 8)


def test_pairs_labelled_twice_are_found_in_either_order(tmp_path: Path) -> None:
    rows = [record(0, "p", ["good", "bad"], [1.0, 0.0], ["human"] * 2)]
    rows += [record(1, "p", ["bad", "good"], [0.0, 1.0], ["bot"] * 2), record(2, "p", ["good", "bad"], [0.0, 1.0], ["bot"] * 2)]
    rows += [record(3, "other", ["good", "bad"], [1.0, 0.0], ["bot"] * 2)]  # another prompt
    # People contradict each other: no golden label.
    rows += [record(4 + i, "q", ["one", "two"], [float(i), float(1 - i)], ["human"] * 2) for i in range(2)]
    rows += [record(6, "q", ["one", "two"], [1.0, 0.0], ["bot"] * 2)]
    path = written(tmp_path / "records.parquet", rows)
    labels = read_labels(path, None, "mean", ["human"], None, 8)
    overlap = find_overlap(path, labels)
    assert overlap.agrees[1].tolist() == [True, False] and overlap.right == {1: True, 2: False}
    assert overlap.prompts[1].tolist() == [rows[0]["prompt_hash"]] * 2
