"""The reference stage: only new rows are scored, whatever row groups and batches, and never with other weights' values."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dora_core.config.data import DataConfig, DataSource
from dora_core.config.execution import Execution
from dora_core.config.method import ModelConfig, TextConfig
from dora_core.data.inputs import fingerprint_sources
from dora_core.errors import ModelError
from dora_core.models.logprobs import ResponseLogps
from dora_core.models.packing import PackedRows
from dora_core.models.response_rows import ResponseRows
from dora_core.testbed.mixture import Testbed, TestbedConfig
from infra.store.store import Store
from tasks.runtime.stage import StageContext, StageRef, execute
from tasks.stages import ingest, reference
from tests.tasks.conftest import GOLDEN, IN_PROCESS, TEXT

WORLD = TestbedConfig(prompts=60, responses_per_prompt=3)


@pytest.fixture
def model(pipeline_start, tmp_path: Path) -> Path:
    """A folder with a tiny policy, as a downloaded one."""
    store, _, start, _ = pipeline_start
    return Path(shutil.copytree(store / start.stage / start.digest / "model", tmp_path / "model"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def ingested(store: Store, folder: Path, prompts: int) -> StageRef:
    rows = Testbed(WORLD).generate()[:prompts]
    path = folder / f"{prompts}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    config = DataConfig(train=[DataSource(path=str(path))], golden_sources=GOLDEN, holdout_fraction=0.3)
    spec = ingest.Spec(data=config, fingerprints=fingerprint_sources(config))
    execute(spec, ingest.run, store)
    return spec.ref()


def reference_spec(records: StageRef, model: Path, execution: Execution = IN_PROCESS, text: TextConfig = TEXT) -> reference.Spec:
    return reference.Spec(records=records, start=None, model=ModelConfig(source=str(model)), text=text, execution=execution)


def table_of(store: Store, spec: reference.Spec):
    return pq.read_table(store.fetch("reference", spec.digest()) / "logps.parquet")


def test_rows_are_those_of_the_records_of_both_splits(store, model, tmp_path):
    records = ingested(store, tmp_path, 50)
    spec = reference_spec(records, model)
    result = execute(spec, reference.run, store)
    table = table_of(store, spec)
    rows = pq.read_table(store.fetch("ingest", records.digest) / "records.parquet").to_pylist()
    expected = [(r["record_id"], i) for r in rows for i in range(len(r["responses"]))]
    assert list(zip(table["record_id"].to_pylist(), table["response_index"].to_pylist(), strict=True)) == expected
    assert table.column_names == ["record_id", "response_index", "logp", "tokens", "prompt_tokens", "truncated"]
    assert result["rows"] == len(expected) and result["facts"]["scored_rows"] + result["facts"]["reused_rows"] == len(expected)

    from dora_core.data.encoding import Encoder
    from dora_core.models.loading import load_policy

    encoder = Encoder(load_policy(model)[1], TEXT)
    encoded = [encoder.encode(r["prompt"], y) for r in rows for y in r["responses"]]
    assert table["tokens"].to_pylist() == [len(e.response_ids) for e in encoded]
    assert table["prompt_tokens"].to_pylist() == [len(e.prompt_ids) for e in encoded]
    assert table["truncated"].to_pylist() == [e.truncated for e in encoded]


def test_more_data_scores_only_what_is_new_and_keeps_the_old_values(store, model, tmp_path):
    few, many = (reference_spec(ingested(store, tmp_path, n), model) for n in (50, 60))
    first, second = execute(few, reference.run, store)["facts"], execute(many, reference.run, store)["facts"]
    old, new = table_of(store, few), table_of(store, many)
    assert second["scored_rows"] == len(new) - len(old) > 0 and second["reused_rows"] == len(old)
    assert first["scored_rows"] + first["reused_rows"] == len(old)
    before = {(r["record_id"], r["response_index"]): r for r in old.to_pylist()}
    shared = [row for row in new.to_pylist() if (row["record_id"], row["response_index"]) in before]
    assert len(shared) == len(old) and all(row == before[row["record_id"], row["response_index"]] for row in shared)


def test_other_weights_or_truncation_never_read_the_same_row_cache(store, model, tmp_path):
    """A folder whose files change keeps its name: the row cache goes by its content."""
    records = ingested(store, tmp_path, 50)
    spec = reference_spec(records, model)
    shorter = reference_spec(records, model, text=TEXT.model_copy(update={"max_response_tokens": 16}))
    facts = execute(spec, reference.run, store)["facts"]
    assert execute(shorter, reference.run, store)["facts"]["scored_rows"] == facts["scored_rows"]
    before = reference.row_cache_digest(spec)
    config = (model / "generation_config.json").read_text()
    (model / "generation_config.json").write_text(config + "\n")
    assert reference.row_cache_digest(spec) != before
    shutil.rmtree(store.local_root / "reference" / spec.digest())
    assert execute(spec, reference.run, store)["facts"]["scored_rows"] == facts["scored_rows"]


def test_a_crash_after_scoring_scores_nothing_again(store, model, tmp_path):
    spec = reference_spec(ingested(store, tmp_path, 50), model)

    def scores_and_dies(spec: reference.Spec, context: StageContext):
        reference.run(spec, context)
        raise ConnectionError("the node is gone before the result is written")

    with pytest.raises(ConnectionError):
        execute(spec, scores_and_dies, store)
    facts = execute(spec, reference.run, store)["facts"]
    assert facts["scored_rows"] == 0 and facts["reused_rows"] == len(table_of(store, spec))


@pytest.mark.fault(3)
def test_out_of_memory_takes_smaller_batches_and_says_which_key_to_set(store, model, tmp_path, monkeypatch):
    """A device for 200 tokens; the second attempt reads finished shards and still knows."""
    spec = reference_spec(ingested(store, tmp_path, 50), model, Execution(workers=0, shard_rows=40))
    exact = Store(str(shutil.copytree(store.local_root, tmp_path / "exact")))
    cut = execute(spec, reference.run, exact)["facts"]["warnings"]
    assert len(cut) == 1 and "cut" in cut[0]
    forward, sizes = ResponseLogps.forward, list[int]()

    def limited(self: ResponseLogps, rows: PackedRows | ResponseRows) -> torch.Tensor:
        sizes.append(rows.ids_S.numel() if isinstance(rows, PackedRows) else rows.ids_RS.numel())
        if sizes[-1] > 200:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, rows)

    monkeypatch.setattr(ResponseLogps, "forward", limited)
    (warning,) = [w for w in execute(spec, reference.run, store)["facts"]["warnings"] if w not in cut]
    assert "set batch_tokens of execution.reference" in warning and "did not hold 16384 tokens" in warning
    assert 0 < len([size for size in sizes if size > 200]) < 10
    ours, theirs = table_of(store, spec), table_of(exact, spec)
    assert ours.drop_columns("logp") == theirs.drop_columns("logp")
    assert ours["logp"].to_numpy() == pytest.approx(theirs["logp"].to_numpy(), abs=1e-4)


@pytest.mark.component
def test_actors_give_the_same_bytes(ray_cluster, store, model, tmp_path):
    """Shards of one size, in this process and on two actors."""
    records = ingested(store, tmp_path, 60)
    alone = Store(str(tmp_path / "alone"))
    ingested(alone, tmp_path, 60)
    spec = reference_spec(records, model, Execution(workers=2, cpus_per_worker=1, shard_rows=40))
    execute(spec, reference.run, store)
    execute(spec.model_copy(update={"execution": Execution(workers=0, shard_rows=40)}), reference.run, alone)
    ours, theirs = table_of(store, spec), table_of(alone, spec)
    assert ours.drop_columns("logp") == theirs.drop_columns("logp")
    assert ours["logp"].to_numpy() == pytest.approx(theirs["logp"].to_numpy(), rel=1e-5)


def test_streamed_layers_give_the_same_bits(store, model, tmp_path):
    """In stores of their own, so that neither reads the other's row cache."""
    found = []
    for name in ("resident", "streamed"):
        own = Store(str(tmp_path / name))
        execution = IN_PROCESS.evolve(stream_layers=name == "streamed")
        spec = reference_spec(ingested(own, tmp_path, 20), model, execution)
        execute(spec, reference.run, own)
        found.append((spec.digest(), table_of(own, spec)["logp"].to_pylist()))
    assert found[0] == found[1], "the same digest, too"


def test_layers_that_cannot_be_streamed_are_refused_with_the_remedy(model, tmp_path):
    (model / "model.safetensors").unlink()
    arguments = reference.LogpArguments(
        store_uri=str(tmp_path),
        execution=IN_PROCESS.evolve(stream_layers=True),
        models={"reference": ModelConfig(source=str(model))},
        text=TEXT,
    )
    with pytest.raises(ModelError, match=r"cannot be streamed: it has neither model\.safetensors") as error:
        reference.LogpScorer(arguments)
    assert "stream_layers: false" in error.value.hint
