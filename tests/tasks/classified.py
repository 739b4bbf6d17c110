"""The known mixture, classified and calibrated: specs and readers for the tests of both stages and of drift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dora_core.config.data import DataConfig, DataSource
from dora_core.config.execution import Execution
from dora_core.config.method import CalibrationConfig, ClassifierConfig, ModelConfig
from dora_core.config.rounds import DriftConfig
from dora_core.data.inputs import fingerprint_sources
from dora_core.testbed.mixture import Testbed, TestbedConfig
from infra.store.store import Store
from tasks.runtime.stage import StageRef, execute
from tasks.stages import calibrate, classify, drift, ingest
from tests.tasks.conftest import GOLDEN, IN_PROCESS

WORLD = TestbedConfig(prompts=300, responses_per_prompt=4, sources=2, alpha=0.3)
CONFIG = ClassifierConfig(
    encoder=ModelConfig(hidden_size=16, layers=1, heads=2, vocab_size=600),
    folds=2,
    epochs=6,
    batch_tokens=2048,
    max_prompt_tokens=16,
    max_response_tokens=96,
)


def ingested(store: Store, folder: Path, rows: list[dict], golden: list[dict] | None = None, **source) -> StageRef:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
    extra = []
    if golden:
        pq.write_table(pa.Table.from_pylist(golden), folder / "golden.parquet")
        extra = [DataSource(path=str(folder / "golden.parquet"))]
    config = DataConfig(train=[DataSource(path=str(folder / "data.parquet"), **source)], golden=extra, golden_sources=GOLDEN)
    spec = ingest.Spec(data=config, fingerprints=fingerprint_sources(config))
    execute(spec, ingest.run, store)
    return spec.ref()


def classify_spec(records: StageRef, drift: StageRef | None = None, execution: Execution = IN_PROCESS, **changes) -> classify.Spec:
    config = CONFIG.model_copy(update=changes)
    return classify.Spec(records=records, classifier=config, golden_sources=GOLDEN, drift=drift, execution=execution)


def drift_spec(records: StageRef, previous: drift.Previous) -> drift.Spec:
    settings = {"classifier": CONFIG, "calibration": CalibrationConfig(), "drift": DriftConfig()}
    return drift.Spec(records=records, golden_sources=GOLDEN, previous=previous, execution=IN_PROCESS, **settings)


def calibrate_spec(records: StageRef, classifier: StageRef, execution: Execution = IN_PROCESS, **settings) -> calibrate.Spec:
    config = CalibrationConfig(**settings)
    return calibrate.Spec(records=records, classifier=classifier, calibration=config, golden_sources=GOLDEN, execution=execution)


def table_of(store: Store, spec: calibrate.Spec) -> pa.Table:
    return pq.read_table(store.fetch("calibrate", spec.digest()) / "calibration.parquet")


def true_ratios(testbed: Testbed, rows: list[dict], table: pa.Table) -> np.ndarray:
    texts = {row["id"]: row for row in rows}
    pairs = zip(table["record_id"].to_pylist(), table["response_index"].to_pylist(), strict=True)
    return np.array([testbed.true_ratio(texts[r]["prompt"], texts[r]["responses"][i]) for r, i in pairs])
