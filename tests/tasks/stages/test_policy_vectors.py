"""Vectors of the policy for the proxy: those of the model itself, by record and place; the stage ``value`` on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dora_core.config.method import ModelConfig
from dora_core.config.valuation import ExchangeConfig, TrustConfig
from dora_core.data.encoding import Encoder
from dora_core.models.loading import load_policy
from dora_core.models.logprobs import ResponseLogps, represent_responses
from infra.store.store import Store
from tasks.runtime.stage import StageRef, execute
from tasks.stages import value
from tasks.stages._policy_vectors import Vectors
from tests.tasks.conftest import GOLDEN, IN_PROCESS, TEXT

SMALL = {"buckets": 16, "bootstrap_samples": 100}


def spec_of(records: StageRef, start: StageRef, **exchange: object) -> value.Spec:
    settings = ExchangeConfig.model_validate(SMALL | exchange)
    spec = value.Spec(
        records=records, calibration=None, trust=TrustConfig(), exchange=settings, golden_sources=GOLDEN, execution=IN_PROCESS
    )
    return spec if settings.features == "text" else spec.evolve(start=start, model=ModelConfig(), text=TEXT)


@pytest.mark.parametrize("features", ["policy", "both"])
def test_the_proxy_reads_the_policy_before_alignment(
    pipeline_start: tuple[Path, StageRef, StageRef, StageRef], tmp_path: Path, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, records, start, _ = pipeline_start
    store, computed = Store(str(shutil.copytree(root, tmp_path / "store"))), list[Vectors]()
    whole = value.compute_vectors

    def spy(*arguments: Any) -> Vectors:
        computed.append(whole(*arguments))
        return computed[-1]

    monkeypatch.setattr(value, "compute_vectors", spy)
    spec = spec_of(records, start, features=features)
    facts = value.Facts.model_validate(execute(spec, value.run, store)["facts"])
    assert any(source.agreement is not None for source in facts.sources.values())
    assert spec.inputs()["start"] == start
    (vectors,) = computed
    model, tokenizer = load_policy(store.fetch(start.stage, start.digest) / "model")
    table = pq.read_table(store.fetch("ingest", records.digest) / "records.parquet", filters=[("split", "=", "train")]).to_pylist()
    (record, place), row = next(iter(vectors.row.items()))
    encoded = Encoder(tokenizer, TEXT).encode(table[record]["prompt"], table[record]["responses"][place])
    (expected,) = represent_responses(ResponseLogps(model.eval()), [encoded], tokenizer.pad_token_id, 1000, torch.device("cpu"))
    found = vectors.of(np.array([record]), np.array([place]))[0]
    assert found[:2] == pytest.approx([expected[0], expected[0] / len(encoded.response_ids)], abs=1e-3)
    assert found[2:] == pytest.approx(expected[1:], abs=1e-4) and vectors.vector_ND[row] == pytest.approx(found)


def test_text_features_need_no_policy_and_keep_the_digest(pipeline_start: tuple[Path, StageRef, StageRef, StageRef]) -> None:
    _, records, start, _ = pipeline_start
    payload = json.dumps(spec_of(records, start).payload())
    assert not {"start", "model", "text"} & spec_of(records, start).payload().keys() and "features" not in payload
    assert spec_of(records, start, features="both").digest() != spec_of(records, start).digest()
