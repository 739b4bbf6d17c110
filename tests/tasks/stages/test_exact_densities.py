"""Stage truth: densities, gold rewards and factors of the known mixture."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dora_core.calibration import calibrate
from dora_core.config.data import DataConfig, DataSource
from dora_core.config.method import CalibrationConfig, TestbedConfig
from dora_core.data.encoding import plain_prompt
from dora_core.data.inputs import fingerprint_sources
from dora_core.errors import DataError
from dora_core.testbed.mixture import Testbed
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages import exact_densities as truth
from tasks.stages import ingest
from tests.tasks.sampled import MIXTURE, Start, output, records_of


@pytest.fixture
def store(pipeline_start: Start, tmp_path: Path) -> Store:
    shutil.copytree(pipeline_start[0], tmp_path / "store")
    return Store(str(tmp_path / "store"))


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
        *(f"log_prompt_{s}" for s in testbed.sources),
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
