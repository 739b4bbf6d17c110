"""Prompts with responses: which are shown, and with which numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.report.examples import Response, examples
from infra.store.store import Store
from tasks.runtime.descriptor import StageResult
from tasks.runtime.facts import AnyFacts
from tasks.runtime.spec import StageRef

RECORDS = [f"r{n}" for n in range(7)]


def stored(store: Store, stage: str, letter: str, name: str, rows: list[dict[str, Any]]) -> StageRef:
    folder = store.folder(stage, letter * 64)
    pq.write_table(pa.Table.from_pylist(rows), folder.path / name)
    content = {"spec": {}, "inputs": {}, "rows": 1, "metrics": {}, "facts": {}, "started": 0.0, "seconds": 1.0, "python": "3"}
    store.mark_done(folder, content | {"stage": stage, "digest": letter * 64})  # type: ignore[arg-type]
    return StageRef(stage=stage, digest=letter * 64)


@pytest.fixture
def comparison(tmp_path: Path) -> tuple[Store, StageResult[Any]]:
    """Seven prompts of two samples each. The start scores 0; the policy's first sample of record n scores n − 3, its second none.
    Record 6 has two best responses, so that no single one is chosen."""
    store = Store(str(tmp_path))
    rewards = {name: [1.0, 0.0] if name != "r6" else [1.0, 1.0] for name in RECORDS}
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "prompt r6"}]
    prompts = {name: [{"role": "user", "content": f"prompt {name}"}] if name != "r6" else turns for name in RECORDS}
    given = [{"record_id": n, "prompt": prompts[n], "responses": [f"best {n}", "other"], "rewards": rewards[n]} for n in RECORDS]
    pairs = [(name, sample) for name in RECORDS for sample in (1, 0)]  # not in order

    def samples(who: str) -> list[dict[str, Any]]:
        return [{"record_id": name, "sample": sample, "response": f"{who} {name} {sample}"} for name, sample in pairs]

    def scores(of: Any) -> list[dict[str, Any]]:
        return [{"record_id": name, "sample": sample, "score": of(name, sample)} for name, sample in pairs]

    inputs = {
        "records": stored(store, "ingest", "a", "records.parquet", given),
        "samples": stored(store, "generate", "b", "samples.parquet", samples("policy")),
        "start_samples": stored(store, "generate", "c", "samples.parquet", samples("start")),
        "scores": stored(store, "judge", "d", "scores.parquet", scores(lambda n, sample: int(n[1]) - 3.0 if sample == 0 else None)),
        "start_scores": stored(store, "judge", "e", "scores.parquet", scores(lambda n, sample: 0.0)),
        "chosen_scores": stored(store, "judge", "f", "scores.parquet", scores(lambda n, sample: 5.0 - sample)),
    }
    facts: Any = AnyFacts()
    return store, StageResult("compare", "0" * 64, {}, inputs, 7, {}, facts, 1.0)


def test_prompts_are_spread_from_the_largest_loss_to_the_largest_win(comparison: tuple[Store, StageResult[Any]]) -> None:
    store, result = comparison
    assert [(one.record_id, one.difference) for one in examples(store, result, 3)] == [("r0", -3.0), ("r3", 0.0), ("r6", 3.0)]
    assert [one.record_id for one in examples(store, result, 1)] == ["r3"]
    assert [one.record_id for one in examples(store, result, 50)] == RECORDS


def test_an_example_has_the_first_sample_of_each_with_score_and_length(comparison: tuple[Store, StageResult[Any]]) -> None:
    first, *_, last = examples(*comparison, 7)
    assert first.prompt == "prompt r0"
    assert first.responses == [
        Response("start", "start r0 0", 0.0, 0.0, 10),
        Response("new", "policy r0 0", -3.0, -3.0, 11),
        Response("chosen", "best r0", 5.0, 5.0, 7),
    ]
    assert last.prompt == "system: Be brief.\n\nuser: prompt r6"
    assert [one.name for one in last.responses] == ["start", "new"], "two best responses: none was chosen"
