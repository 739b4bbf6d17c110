"""Records at both ends of h and of label trust."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.errors import StoreError
from flows.report import extremes
from flows.report.extremes import by_factor, by_trust
from infra.store.store import Store
from tasks.runtime.descriptor import StageResult
from tests.flows.report.runs import estimate, make_facts, result_of


def stored(tmp_path: Path, stage: str, name: str, rows: list[dict[str, Any]], **changes: Any) -> tuple[Store, StageResult[Any]]:
    store = Store(str(tmp_path))
    result = result_of(stage, make_facts(["human", "model"])[stage] | changes)
    folder = store.folder(stage, result.digest)
    pq.write_table(pa.Table.from_pylist(rows), folder.path / name, row_group_size=7)
    content = {"spec": {}, "inputs": {}, "rows": 1, "metrics": {}, "facts": {}, "started": 0.0, "seconds": 1.0, "python": "3"}
    store.mark_done(folder, content | {"stage": stage, "digest": result.digest})  # type: ignore[arg-type]
    return store, result


@pytest.mark.parametrize("batch", [7, 65_536])
def test_both_ends_of_h_with_source_and_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """h of response n of 30 is (7 n mod 30)/10: each of 0 … 2.9 once."""
    monkeypatch.setattr(extremes, "BATCH", batch)
    rows = [
        {"record_id": f"r{n:02}", "response_index": n % 2, "source": "human" if n % 3 else "model", "h": (7 * n % 30) / 10}
        | {"c_model": None if n == 0 else n / 100, "c_other": 0.5}
        for n in range(30)
    ]
    found = by_factor(*stored(tmp_path, "calibrate", "calibration.parquet", rows))
    assert found is not None
    assert [row.value for row in found.bottom] == [n / 10 for n in range(10)]
    assert [row.value for row in found.top] == [n / 10 for n in range(29, 19, -1)]
    assert (found.bottom[0].record_id, found.bottom[0].source, found.bottom[0].response) == ("r00", "model", 0)
    assert found.bottom[0].reason == "golden with probability 0.50, against other", "its own classifier has no number"
    highest = found.top[0]  # 7 n mod 30 = 29: n = 17, of the golden source: the classifier furthest from ½
    assert (highest.record_id, highest.source, highest.reason) == ("r17", "human", "golden with probability 0.17, against model")


def test_equal_factors_have_no_ends(tmp_path: Path) -> None:
    rows = [{"record_id": f"r{n}", "response_index": 0, "source": None, "h": 1.0} for n in range(20)]
    assert by_factor(*stored(tmp_path, "calibrate", "calibration.parquet", rows)) is None


def test_trust_leaves_out_records_without_a_probability(tmp_path: Path) -> None:
    rows = [{"record_id": f"r{n}", "label_source": "model", "label_probability": 0.5 + n / 100} for n in range(12)]
    rows += [{"record_id": "people", "label_source": "human", "label_probability": 1.0}]
    rows += [{"record_id": "none", "label_source": None, "label_probability": None}]
    sources = make_facts(["human", "model"])["value"]["sources"]
    sources["model"] |= {"agreement": estimate(0.74), "method": "reward_model"}
    found = by_trust(*stored(tmp_path, "value", "label_trust.parquet", rows, sources=sources))
    assert found is not None and {"none"} & {row.record_id for row in (*found.bottom, *found.top)} == set()
    assert (found.top[0].record_id, found.top[0].reason) == ("people", "labelled by a golden source")
    assert (found.bottom[0].record_id, found.bottom[0].value) == ("r0", 0.5)
    assert found.bottom[0].reason == "the source agrees with people in 74% of pairs, by reward model"


def test_a_table_too_large_for_a_page_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extremes, "MOST_BYTES", 10)
    rows = [{"record_id": "r0", "response_index": 0, "source": None, "h": 1.0}]
    with pytest.raises(StoreError, match="not read for a page"):
        by_factor(*stored(tmp_path, "calibrate", "calibration.parquet", rows))


def test_a_result_without_its_table_has_no_ends(tmp_path: Path) -> None:
    store, result = stored(tmp_path, "value", "another.parquet", [{"a": 1}])
    assert by_trust(store, result) is None
