"""The stage ``sft`` in one process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.config.method import OptimizationConfig, SftConfig
from dora_core.data.records import GOLDEN_SCHEMA, RECORDS_SCHEMA
from dora_core.errors import DataError
from infra.store.store import Store, sha256_file
from tasks.runtime.stage import StageRef, execute
from tasks.stages import sft
from tests.tasks.conftest import GOLDEN, IN_PROCESS, TEXT, TINY

Start = tuple[Path, StageRef, StageRef, StageRef]


@pytest.fixture
def store(pipeline_start: Start, tmp_path: Path) -> Store:
    return Store(str(shutil.copytree(pipeline_start[0], tmp_path / "store")))


def test_supervised_training_goes_on_from_another_stages_model(pipeline_start: Start, store: Store) -> None:
    """A round of RAFT: each record's best response, from the policy of the round before; its first loss is that policy's own."""
    _, records, start, logps = pipeline_start
    optimization = OptimizationConfig(epochs=1, batch_size=1000, learning_rate=1e-4)  # one step over everything
    spec = sft.Spec(
        records=records,
        model=TINY,
        text=TEXT,
        sft=SftConfig(data="best", optimization=optimization),
        golden_sources=GOLDEN,
        start=start,
        execution=IN_PROCESS,
    )
    result = execute(spec, sft.run, store)
    best, split = {}, [("split", "=", "train")]
    for row in pq.read_table(store.fetch("ingest", records.digest) / "records.parquet", filters=split).to_pylist():
        best[row["record_id"]] = max(range(len(row["rewards"])), key=row["rewards"].__getitem__)
    scored = pq.read_table(store.fetch("reference", logps.digest) / "logps.parquet").to_pylist()
    chosen = [r for r in scored if best.get(r["record_id"]) == r["response_index"]]
    assert result["rows"] == len(best) == len(chosen)
    expected = -sum(r["logp"] for r in chosen) / sum(r["tokens"] for r in chosen)
    assert result["facts"]["curve"]["loss"] == [pytest.approx(expected, rel=1e-4)]
    tokenizers = [store.fetch("sft", digest) / "model" / "tokenizer.json" for digest in (start.digest, spec.digest())]
    assert sha256_file(tokenizers[0]) == sha256_file(tokenizers[1]), "no tiny model of its own"


def test_without_any_trusted_response_there_is_nothing_to_learn(pipeline_start: Start, store: Store) -> None:
    spec = sft.Spec(records=pipeline_start[1], model=TINY, text=TEXT, sft=SftConfig(), golden_sources=["editor"], execution=IN_PROCESS)
    with pytest.raises(DataError, match=r"no training response comes from a golden source \(editor\)") as error:
        execute(spec, sft.run, store)
    assert "set sft.data to 'best'" in error.value.hint


def test_the_facts_have_neither_loss_nor_objective(pipeline_start: Start, store: Store) -> None:
    ref = pipeline_start[2]
    written = store.read_result(ref.stage, ref.digest)
    assert written is not None
    facts = sft.STAGE.parse(written).facts
    assert facts.loss is None and facts.objective is None and facts.steps == len(facts.curve.step) == len(facts.curve.measures["loss"])
    assert facts.dump() == written["facts"], "parsing and dumping changes nothing"


def test_of_labelled_responses_only_the_desirable_ones_are_learned(tmp_path: Path) -> None:
    def record(name: str, rewards: list[float | None], kind: str) -> dict:
        texts = [f"{name}{i}" for i in range(len(rewards))]
        row = {"record_id": name, "prompt": [{"role": "user", "content": "q"}], "responses": texts, "rewards": rewards}
        more = {"sources": ["human"] * len(rewards), "reward_kind": kind, "split": "train", "prompt_hash": 1, "schema_version": 2}
        return row | more

    rows = [record("up", [1.0], "label"), record("down", [0.0], "label"), record("list", [0.0, -1.0], "reward")]
    pq.write_table(pa.Table.from_pylist(rows, schema=RECORDS_SCHEMA), tmp_path / "records.parquet")
    pq.write_table(GOLDEN_SCHEMA.empty_table(), tmp_path / "golden.parquet")
    assert [text for _, text in sft.sft_examples(tmp_path, SftConfig(data="best"), GOLDEN)] == ["up0", "list0"]
    assert len(sft.sft_examples(tmp_path, SftConfig(data="golden"), GOLDEN)) == 4, "trusted sources count whatever the label"
