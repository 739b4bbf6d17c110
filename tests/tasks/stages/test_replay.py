"""Training records of a run that continues from a champion, from records written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.data.records import GOLDEN_SCHEMA, RECORDS_SCHEMA
from dora_core.errors import DataError
from infra.store.store import Store
from tasks.runtime.stage import StageRef, execute
from tasks.stages import replay
from tests.tasks.facts import assert_round_trip
from tests.tasks.handmade import finished


def records(store: Store, name: str, numbers: range, **changes: dict[int, Any]) -> StageRef:
    """Records i of ``numbers``, each fifth held out, each fourth human; ``changes``: column → {i: value}."""
    rows = []
    for i in numbers:
        row = {"record_id": f"{name}-{i}", "prompt": [{"role": "user", "content": f"question {i}"}], "responses": [f"y{i}.0", f"y{i}.1"]}
        row |= {"rewards": [1.0, 0.0], "sources": ["human" if i % 4 == 0 else "a-lm"] * 2, "reward_kind": "preference"}
        row |= {"split": "eval" if i % 5 == 4 else "train", "prompt_hash": 1000 + i, "schema_version": 1}
        rows.append(row | {column: values[i] for column, values in changes.items() if i in values})
    golden = pa.Table.from_pylist([{"record_id": "g", "response": "trusted", "prompt_hash": 1, "split": "train"}], schema=GOLDEN_SCHEMA)
    files = {"records.parquet": pa.Table.from_pylist(rows, schema=RECORDS_SCHEMA), "golden.parquet": golden}
    return finished(store, "ingest", name, files)


def replayed(store: Store, given: StageRef, earlier: StageRef, share: float = 0.25) -> tuple[list[int], replay.Facts, Path]:
    spec = replay.Spec(records=given, earlier=earlier, replay=share, golden_sources=["human"])
    content = execute(spec, replay.run, store)
    assert_round_trip(content)
    folder = store.fetch("replay", spec.digest())
    hashes = pq.read_table(folder / "records.parquet")["prompt_hash"].to_pylist()
    return [h - 1000 for h in hashes], replay.Facts.model_validate(content["facts"]), folder


def test_new_records_and_a_share_of_the_earlier_ones(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    given, earlier = records(store, "tonight", range(100)), records(store, "before", range(70))
    numbers, facts, folder = replayed(store, given, earlier)
    # of 100 records 80 are trained on; of the 30 new ones 24, so that with a share of a quarter 24·¼/¾ = 8 of the 56 earlier ones stay
    assert (facts.new, facts.seen, facts.replayed) == (24, 56, 8) and numbers == sorted(numbers)
    assert [i for i in numbers if i >= 70] == [i for i in range(70, 100) if i % 5 != 4]
    assert facts.golden_share == pytest.approx(sum(i % 4 == 0 for i in numbers) / 32) and facts.sources.keys() == {"a-lm", "human"}
    assert pq.read_table(folder / "golden.parquet")["response"].to_pylist() == ["trusted"]
    assert set(pq.read_table(folder / "records.parquet")["split"].to_pylist()) == {"train"}


def test_the_draw_is_fixed_by_the_records_and_differs_from_night_to_night(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    given, first, second = (records(store, name, range(n)) for name, n in (("tonight", 100), ("first", 70), ("second", 71)))
    drawn = [i for i in replayed(store, given, first)[0] if i < 70]
    assert drawn == [i for i in replayed(Store(str(tmp_path)), given, first)[0] if i < 70]
    assert drawn != [i for i in replayed(store, given, second)[0] if i < 70]


def test_without_replay_only_new_records_are_left(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    numbers, facts, _ = replayed(store, records(store, "tonight", range(20)), records(store, "before", range(10)), share=0.0)
    assert numbers == [i for i in range(10, 20) if i % 5 != 4] and facts.replayed == 0


def test_a_record_labelled_anew_is_new(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    changes = {"rewards": {1: [0.0, 1.0]}, "extra": {2: '{"annotator":"ann"}'}}
    numbers, facts, _ = replayed(store, records(store, "tonight", range(10), **changes), records(store, "before", range(10)), share=0.0)
    assert numbers == [1, 2] and (facts.new, facts.seen) == (2, 6)


def test_nothing_new_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(DataError, match="none of the 8 training records is new") as refused:
        replayed(store, records(store, "tonight", range(10)), records(store, "before", range(10)))
    assert "policy.start: base" in (refused.value.hint or "")


def test_headline() -> None:
    facts = replay.Facts(new=3, seen=9, replayed=1, golden_share=0.5, sources={})
    result = {"stage": "replay", "digest": "a" * 64, "spec": {}, "inputs": {}, "rows": 4, "metrics": {}, "seconds": 1.0}
    assert replay.STAGE.headline(replay.STAGE.parse(result | {"facts": facts.model_dump()})) == "3 new records, 1 of 9 earlier ones again"  # type: ignore[arg-type]
