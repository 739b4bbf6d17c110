"""generate → judge, and truth: on a tiny realignment, in one process and on two actors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from transformers import DynamicCache

from dora_core.calibration import calibrate
from dora_core.config.execution import Execution
from dora_core.config.judging import GoldJudge
from dora_core.config.method import (
    CalibrationConfig,
    DataConfig,
    DataSource,
    GenerateConfig,
    TestbedConfig,
)
from dora_core.data.encoding import plain_prompt
from dora_core.data.inputs import fingerprint_sources
from dora_core.errors import DataError
from dora_core.models import generation
from dora_core.testbed.mixture import Testbed
from infra.store.store import Store, sha256_file
from tasks.runtime.stage import StageRef, StageSpec, execute
from tasks.stages import exact_densities as truth
from tasks.stages import generate, ingest, judge
from tests.tasks.conftest import IN_PROCESS, TEXT, TINY

Start = tuple[Path, StageRef, StageRef, StageRef]
MIXTURE = TestbedConfig(prompts=80, responses_per_prompt=3)  # as in conftest.py
SAMPLING = GenerateConfig(samples=3, max_new_tokens=24)


@pytest.fixture
def store(pipeline_start: Start, tmp_path: Path) -> Store:
    shutil.copytree(pipeline_start[0], tmp_path / "store")
    return Store(str(tmp_path / "store"))


def generate_spec(start: Start, sampling: GenerateConfig = SAMPLING, execution: Execution = IN_PROCESS, **other) -> generate.Spec:
    _, records, policy, _ = start
    return generate.Spec(records=records, policy=policy, model=TINY, text=TEXT, generate=sampling, execution=execution, **other)


def output(store: Store, spec: StageSpec, name: str) -> pa.Table:
    return pq.read_table(store.fetch(spec.stage, spec.digest()) / name)


def records_of(store: Store, ref: StageRef, split: str) -> list[dict]:
    return pq.read_table(store.fetch(ref.stage, ref.digest) / "records.parquet", filters=[("split", "=", split)]).to_pylist()


def test_samples_of_every_prompt_of_the_split_in_its_order(pipeline_start: Start, store: Store) -> None:
    spec = generate_spec(pipeline_start)
    result = execute(spec, generate.run, store)
    table = output(store, spec, "samples.parquet")
    assert {f.name: str(f.type) for f in table.schema} == {
        "record_id": "string",
        "prompt_hash": "uint64",
        "sample": "int32",
        "response": "string",
        "tokens": "int32",
        "finished": "bool",
    }
    records = records_of(store, pipeline_start[1], "eval")
    rows = table.to_pylist()
    assert [(r["record_id"], r["prompt_hash"], r["sample"]) for r in rows] == [
        (record["record_id"], record["prompt_hash"], s) for record in records for s in range(3)
    ]
    assert all(1 <= r["tokens"] <= 24 for r in rows)
    assert all(r["tokens"] == 24 for r in rows if not r["finished"])
    assert not any("<eos>" in r["response"] or "<pad>" in r["response"] for r in rows)
    assert len({r["response"] for r in rows}) > len(rows) / 2
    assert result["rows"] == result["metrics"]["samples"] == len(rows)
    assert result["metrics"]["finished_fraction"] == np.mean([r["finished"] for r in rows])


def test_fewer_prompts_or_another_execution_give_the_same_texts(pipeline_start: Start, store: Store) -> None:
    every = generate_spec(pipeline_start, split="train")
    few = generate_spec(pipeline_start, SAMPLING.model_copy(update={"prompts": 7, "samples": 2}), split="train")
    for spec in (every, few):
        execute(spec, generate.run, store)
    text = {(r["record_id"], r["sample"]): r["response"] for r in output(store, every, "samples.parquet").to_pylist()}
    rows = output(store, few, "samples.parquet").to_pylist()
    assert len(rows) == 14
    assert all(text[r["record_id"], r["sample"]] == r["response"] for r in rows)
    assert generate_spec(pipeline_start, execution=Execution(workers=3)).digest() == generate_spec(pipeline_start).digest()


@pytest.mark.fault(3)
def test_out_of_memory_samples_fewer_prompts_at_once_and_says_which_key_to_set(pipeline_start: Start, store: Store, monkeypatch) -> None:
    spec, exact = generate_spec(pipeline_start), Store(str(shutil.copytree(store.local_root, store.local_root.parent / "exact")))
    assert "warnings" not in execute(spec, generate.run, exact)["facts"]
    forward, sizes = generation._Batch._forward, list[int]()

    def limited(batch: generation._Batch, ids: torch.Tensor, lengths: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        sizes.append(len(ids) * (cache.get_seq_length() + ids.shape[1]))
        if sizes[-1] > 1500:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(batch, ids, lengths, cache)

    monkeypatch.setattr(generation._Batch, "_forward", limited)
    (warning,) = execute(spec, generate.run, store)["facts"]["warnings"]
    assert "set batch_tokens of execution.generate" in warning and 0 < len([size for size in sizes if size > 1500]) < 10
    ours, theirs = (output(place, spec, "samples.parquet").to_pylist() for place in (store, exact))
    same = [a == b for a, b in zip(ours, theirs, strict=True)]
    assert sum(same) > 0.95 * len(same), "but for a token in a million, on the edge between two in float32"


def test_another_seed_draws_other_train_prompts_and_the_same_held_out_ones(pipeline_start: Start, store: Store) -> None:
    drawn: dict[tuple[str, int], set[int]] = {}
    for split in ("train", "eval"):
        for seed, count in ((0, 5), (0, 7), (1, 5)):
            sampling = GenerateConfig(prompts=count, seed=seed, max_new_tokens=1)
            spec = generate_spec(pipeline_start, sampling, split=split)
            execute(spec, generate.run, store)
            hashes = set(output(store, spec, "samples.parquet")["prompt_hash"].to_pylist())
            assert len(hashes) == count and hashes <= {r["prompt_hash"] for r in records_of(store, pipeline_start[1], split)}
            assert drawn.setdefault((split, seed), hashes) <= hashes, "a larger draw has the smaller one's prompts"
    assert drawn["train", 0] != drawn["train", 1] and drawn["eval", 0] == drawn["eval", 1]


def test_the_tiny_model_cannot_be_sampled_before_it_is_trained(pipeline_start: Start) -> None:
    with pytest.raises(ValidationError, match="give the sft or align stage"):
        generate.Spec(records=pipeline_start[1], policy=None, model=TINY, text=TEXT, generate=SAMPLING)


# ---------------------------------------------------------------------------------------------------------- judge and truth


def test_scores_are_the_gold_reward_of_each_sample(pipeline_start: Start, store: Store) -> None:
    samples = generate_spec(pipeline_start)
    execute(samples, generate.run, store)
    spec = judge.Spec(records=pipeline_start[1], samples=samples.ref(), judge=GoldJudge(testbed=MIXTURE))
    result = execute(spec, judge.run, store)
    scores = output(store, spec, "scores.parquet")
    assert {f.name: str(f.type) for f in scores.schema} == {"record_id": "string", "sample": "int32", "score": "double"}
    table = output(store, samples, "samples.parquet")
    assert scores.select(["record_id", "sample"]) == table.select(["record_id", "sample"])
    prompt = {r["record_id"]: plain_prompt(r["prompt"]) for r in records_of(store, pipeline_start[1], "eval")}
    expected = [Testbed(MIXTURE).gold_reward(prompt[r["record_id"]], r["response"]) for r in table.to_pylist()]
    assert scores["score"].to_pylist() == expected
    assert result["metrics"]["mean_score"] == pytest.approx(np.mean(expected))


def test_truth_is_the_testbeds_own_and_calibrates_as_classifiers_would(pipeline_start: Start, store: Store) -> None:
    spec = truth.Spec(records=pipeline_start[1], testbed=MIXTURE, calibration=CalibrationConfig(cap_quantile=0.9))
    result = execute(spec, truth.run, store)
    table, testbed = output(store, spec, "truth.parquet"), Testbed(MIXTURE)
    assert table.schema.names == [
        "record_id",
        "response_index",
        "split",
        "source",
        "ratio",
        "gold",
        *(f"log_q_{s}" for s in testbed.sources),
    ]
    assert result["rows"] == len(table) == 240
    responses = {
        (record["record_id"], i): (plain_prompt(record["prompt"]), text)
        for split in ("train", "eval")
        for record in records_of(store, pipeline_start[1], split)
        for i, text in enumerate(record["responses"])
    }
    for row in table.slice(0, 30).to_pylist():
        pair = responses[row["record_id"], row["response_index"]]
        assert row["gold"] == testbed.gold_reward(*pair)
        assert row["log_q_verbose-lm"] == testbed.log_density("verbose-lm", *pair)
        mixture = sum(share * np.exp(row[f"log_q_{s}"]) for s, share in testbed.shares.items())
        assert row["ratio"] == pytest.approx(np.exp(row["log_q_human"]) / mixture, rel=1e-9)
    train = table.filter(pa.array(np.array(table["split"].to_pylist()) == "train"))
    factors = output(store, spec, "calibration.parquet")
    assert factors.select(["record_id", "response_index"]) == train.select(["record_id", "response_index"])
    assert factors["h"].to_pylist() == calibrate(train["ratio"].to_numpy(), spec.calibration).h.tolist()


def test_other_data_is_refused(store: Store, pipeline_start: Start, tmp_path: Path) -> None:
    """A record of other data among those of the mixture; and the mixture's own under a configuration that it was not written with."""
    rows = pq.read_table(Testbed(TestbedConfig(prompts=30)).write(tmp_path / "data.parquet")).drop_columns(["labeller"]).to_pylist()
    rows.append(rows[0] | {"id": "other", "prompt": "What is the capital of France?"})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mixed.parquet")
    config = DataConfig(train=[DataSource(path=str(tmp_path / "mixed.parquet"))])
    mixed = ingest.Spec(data=config, fingerprints=fingerprint_sources(config))
    execute(mixed, ingest.run, store)
    with pytest.raises(DataError, match="1 of 31 prompts are not of the known mixture"):
        execute(truth.Spec(records=mixed.ref(), testbed=TestbedConfig(), calibration=CalibrationConfig()), truth.run, store)

    short = MIXTURE.model_copy(update={"max_sentences": 2})
    with pytest.raises(DataError, match="of 240 responses are not of the known mixture's language"):
        execute(truth.Spec(records=pipeline_start[1], testbed=short, calibration=CalibrationConfig()), truth.run, store)

    samples = generate_spec(pipeline_start)
    execute(samples, generate.run, store)
    two_topics = GoldJudge(testbed=TestbedConfig(topics=2))
    with pytest.raises(DataError, match="prompts are not of the known mixture"):
        execute(judge.Spec(records=pipeline_start[1], samples=samples.ref(), judge=two_topics), judge.run, store)


# ------------------------------------------------------------------------------------------------------------------ actors


@pytest.mark.component
def test_two_actors_write_the_bytes_that_one_process_writes(
    pipeline_start: Start, store: Store, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "SHARD_PROMPTS", 9)  # several shards, each on whichever actor is free
    shutil.copytree(tmp_path / "store", tmp_path / "other")
    other = Store(str(tmp_path / "other"))
    for place, execution in ((store, IN_PROCESS), (other, Execution(workers=2))):
        execute(generate_spec(pipeline_start, execution=execution), generate.run, place)
    spec = generate_spec(pipeline_start)
    one, two = (place.fetch(spec.stage, spec.digest()) / "samples.parquet" for place in (store, other))
    assert sha256_file(one) == sha256_file(two)
