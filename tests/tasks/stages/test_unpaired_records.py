"""Unpaired records from ``records.parquet`` to the gate, in one process: trained, evaluated by labels, refused where pairs are needed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.config.alignment import AlignConfig
from dora_core.config.method import EvaluateConfig, GateConfig, OptimizationConfig
from dora_core.data.records import GOLDEN_SCHEMA, RECORDS_SCHEMA
from dora_core.errors import DataError
from dora_core.training.alignment_data import AlignmentData
from infra.store.store import Store
from tasks.runtime.stage import StageRef, execute
from tasks.stages import align, calibrate, classify, evaluate, reference, reward, training_data
from tasks.stages.registry import STAGES, parse_result
from tasks.tables.artifacts import TRAINING_DATA_FILE
from tests.tasks.classified import calibrate_spec, classify_spec, table_of
from tests.tasks.conftest import GOLDEN, IN_PROCESS, TEXT, TINY, align_spec, prepare
from tests.tasks.facts import assert_round_trip
from tests.tasks.handmade import finished
from tests.tasks.judged import reward_spec

Start = tuple[Path, StageRef, StageRef, StageRef]
OPTIMIZATION = OptimizationConfig(epochs=6, batch_size=16, learning_rate=3e-3)


def labelled(record: dict[str, Any], most: int) -> list[dict[str, Any]]:
    """The first ``most`` responses of a list as unpaired records: desirable where the reward is above the list's mean."""
    mean = sum(record["rewards"]) / len(record["rewards"])
    return [
        record
        | {"record_id": f"{record['record_id']}-{i}", "responses": [record["responses"][i]], "sources": [record["sources"][i]]}
        | {"rewards": [float(record["rewards"][i] > mean)], "reward_kind": "label"}
        for i in range(most)
    ]


class World:
    """The tiny realignment with its records rewritten: ``kind`` is responses (every response is a record), prompts (one record of each
    prompt: no pair can be made), or mixed (every other list is split into its responses)."""

    def __init__(self, start: Start, folder: Path, kind: str):
        root, given, policy, _ = start
        self.store = Store(str(shutil.copytree(root, folder / "store")))
        rows = pq.read_table(self.store.fetch("ingest", given.digest) / "records.parquet").to_pylist()
        self.lists = [row for i, row in enumerate(rows) if kind == "mixed" and i % 2]
        self.unpaired = [one for row in rows if row not in self.lists for one in labelled(row, 1 if kind == "prompts" else 3)]
        files = {
            "records.parquet": pa.Table.from_pylist([*self.lists, *self.unpaired], schema=RECORDS_SCHEMA),
            "golden.parquet": GOLDEN_SCHEMA.empty_table(),
        }
        records = finished(self.store, "ingest", kind, files)
        logps = reference.Spec(records=records, start=policy, model=TINY, text=TEXT, execution=IN_PROCESS)
        execute(logps, reference.run, self.store)
        self.start: Start = (self.store.local_root, records, policy, logps.ref())

    def split(self, name: str) -> tuple[list[dict], list[dict]]:
        """Lists and unpaired records of a split."""
        lists, unpaired = ([row for row in rows if row["split"] == name] for rows in (self.lists, self.unpaired))
        return lists, unpaired

    def aligned(self, loss: str) -> tuple[align.Spec, dict[str, Any]]:
        spec = align_spec(self.start, AlignConfig(loss={"name": loss}, objective={"name": "dro"}, optimization=OPTIMIZATION))
        prepare(spec, self.store)
        return spec, execute(spec, align.run, self.store)

    def evaluated(self, policy: StageRef) -> dict[str, Any]:
        _, records, first, logps = self.start
        spec = evaluate.Spec(
            records=records,
            policy=policy,
            reference=logps,
            start=first,
            model=TINY,
            text=TEXT,
            evaluate=EvaluateConfig(kl_prompts=8, kl_max_new_tokens=8),
            gate=GateConfig(),
            golden_sources=GOLDEN,
            execution=IN_PROCESS,
        )
        return execute(spec, evaluate.run, self.store)


@pytest.mark.parametrize(("kind", "loss"), [("responses", "kto"), ("prompts", "bco"), ("mixed", "kto")])
def test_trained_and_evaluated(pipeline_start: Start, tmp_path: Path, kind: str, loss: str) -> None:
    world = World(pipeline_start, tmp_path, kind)
    spec, trained = world.aligned(loss)
    lists, unpaired = world.split("train")
    assert (trained["facts"]["records"], trained["facts"]["unpaired"]) == (len(lists) + len(unpaired), len(unpaired))
    prepared = world.store.read_result("training_data", spec.preparation()["data"].digest())
    assert prepared["metrics"]["unpaired"] == len(unpaired) and prepared["metrics"]["dropped"] == 0
    assert f"({len(unpaired)} unpaired)" in STAGES["training_data"].headline(parse_result(prepared))
    curve = trained["facts"]["curve"]
    assert curve["accuracy"][-1] > 0.6 and curve["loss"][-1] < curve["loss"][0]

    result = world.evaluated(spec.ref())
    facts = result["facts"]
    assert_round_trip(result)
    lists, unpaired = world.split("eval")
    labels = facts["labels"]
    desirable = sum(row["rewards"] == [1.0] for row in unpaired)
    assert (labels["desirable"], labels["undesirable"]) == (desirable, len(unpaired) - desirable)
    assert labels["prompts"] == len({row["prompt_hash"] for row in unpaired})
    for measure in ("auc", "accuracy"):
        assert labels[measure]["policy"]["low"] <= labels[measure]["policy"]["value"] <= labels[measure]["policy"]["high"]
    assert result["metrics"]["label_auc"] == labels["auc"]["policy"]["value"]
    assert f"{len(unpaired)} labels, AUC" in STAGES["evaluate"].headline(parse_result(result))

    prompts = {row["prompt_hash"]: [0, 0] for row in unpaired}
    for row in unpaired:
        prompts[row["prompt_hash"]][int(row["rewards"][0])] += 1
    of_labels = sum(good * bad for good, bad in prompts.values())
    of_lists = sum(a > b for row in lists for a in row["rewards"] for b in row["rewards"])
    assert labels["pairs"] == of_labels and result["rows"] == of_labels + of_lists
    rules = {rule["name"] for rule in facts["gate"]["rules"]}
    if kind == "prompts":
        assert result["rows"] == 0 and facts["parts"] == {} and facts["reward_calibration"] is None
        assert "accuracy" not in rules and facts["gate"]["unchecked"]["accuracy"] == "no held-out prompt has a pair of responses"
    else:
        assert facts["parts"]["all"]["accuracy"]["policy"]["n"] > 0 and "accuracy" in rules
    assert "label_auc" in rules or "label_auc" in facts["gate"]["unchecked"]


def test_a_loss_that_compares_responses_refuses_them_before_anything_is_tokenised(pipeline_start: Start, tmp_path: Path) -> None:
    world = World(pipeline_start, tmp_path, "mixed")
    lists, unpaired = world.split("train")
    message = rf"^{len(unpaired)} of {len(lists) + len(unpaired)} training records are unpaired .* align.loss.name: dpo compares"
    spec = align_spec(world.start, AlignConfig(loss={"name": "dpo"}))
    with pytest.raises(DataError, match=message) as error:
        prepare(spec, world.store)
    assert "align.loss.name to bco or kto" in error.value.hint
    # The file of a loss that reads labels has the same digest: with it in the store, the alignment itself refuses.
    other = align_spec(world.start, AlignConfig(loss={"name": "kto"}))
    assert other.preparation()["data"].digest() == spec.preparation()["data"].digest()
    prepare(other, world.store)
    with pytest.raises(DataError, match=message):
        execute(spec, align.run, world.store)


def test_the_loss_is_not_part_of_the_training_datas_digest(pipeline_start: Start) -> None:
    assert "loss" in training_data.Spec.outside_digest()
    with_loss = align_spec(pipeline_start, AlignConfig(loss={"name": "kto"})).preparation()["data"]
    assert with_loss.digest() == with_loss.model_copy(update={"loss": None}).digest()


def test_a_reward_model_learns_from_the_pairs_alone_or_refuses(pipeline_start: Start, tmp_path: Path) -> None:
    world = World(pipeline_start, tmp_path, "mixed")
    lists, unpaired = world.split("train")
    result = execute(reward_spec(world.start), reward.run, world.store)
    assert result["rows"] == sum(a > b for row in lists for a in row["rewards"] for b in row["rewards"])
    left_out = f"{len(unpaired)} of {len(lists) + len(unpaired)} training records are unpaired"
    assert any(warning.startswith(left_out) for warning in result["facts"]["warnings"])
    alone = World(pipeline_start, tmp_path / "alone", "responses")
    with pytest.raises(DataError, match=r"^all \d+ training records are unpaired .* a reward model learns from pairs") as error:
        execute(reward_spec(alone.start), reward.run, alone.store)
    assert "group the rows of a prompt" in error.value.hint


def test_classified_calibrated_and_aligned_with_their_own_h(pipeline_start: Start, tmp_path: Path) -> None:
    """Classifiers and h are per response: every training response has one, and a record's h is that of its response."""
    world = World(pipeline_start, tmp_path, "responses")
    records = world.start[1]
    classifier = classify_spec(records, epochs=2)
    execute(classifier, classify.run, world.store)
    factors = calibrate_spec(records, classifier.ref())
    execute(factors, calibrate.run, world.store)
    table = table_of(world.store, factors)
    _, unpaired = world.split("train")
    assert table["record_id"].to_pylist() == [row["record_id"] for row in unpaired]
    config = AlignConfig(loss={"name": "bco"}, objective={"name": "dora"}, optimization=OPTIMIZATION)
    spec = align_spec(world.start, config).model_copy(update={"calibration": factors.ref(), "aggregate": "product"})
    prepared = prepare(spec, world.store)
    data = AlignmentData(world.store.fetch("training_data", prepared.digest()) / TRAINING_DATA_FILE)
    assert [data[i].factor for i in range(len(data))] == table["h"].to_pylist()
    trained = execute(spec, align.run, world.store)
    assert trained["facts"]["curve"]["loss"][-1] < trained["facts"]["curve"]["loss"][0]
