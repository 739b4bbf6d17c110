"""Stage generate with a policy: which prompts, which texts, memory, and real actors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import DynamicCache

from dora_core.config.execution import Execution
from dora_core.config.method import (
    GenerateConfig,
)
from dora_core.models import generation
from infra.store.store import Store, sha256_file
from tasks.runtime.stage import execute
from tasks.stages import generate
from tests.tasks.conftest import IN_PROCESS, TEXT, TINY
from tests.tasks.sampled import SAMPLING, Start, generate_spec, output, records_of


@pytest.fixture
def store(pipeline_start: Start, tmp_path: Path) -> Store:
    shutil.copytree(pipeline_start[0], tmp_path / "store")
    return Store(str(tmp_path / "store"))


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
