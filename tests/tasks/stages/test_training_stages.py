"""sft → reference → align → evaluate as stages: in one process. Faults, and Ray Train: ``test_trainer.py``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dora_core.config.alignment import AlignConfig
from dora_core.config.execution import Execution
from dora_core.config.method import EvaluateConfig, GateConfig, LoraConfig, ModelConfig, OptimizationConfig, SftConfig
from infra.store.journal import JournalReader
from infra.store.store import Store, sha256_file
from tasks.runtime.stage import StageRef, execute
from tasks.stages import align, evaluate, reference, sft
from tests.tasks import conftest
from tests.tasks.conftest import GOLDEN, IN_PROCESS, TEXT, TINY, prepare

Start = tuple[Path, StageRef, StageRef, StageRef]


def align_spec(start: Start, execution: Execution, epochs: float = 2.0) -> align.Spec:
    optimization = OptimizationConfig(epochs=epochs, batch_size=8, learning_rate=1e-3)
    return conftest.align_spec(start, AlignConfig(loss={"name": "dpo_pl"}, objective={"name": "dro"}, optimization=optimization), execution)


def own_store(start: Start, folder: Path) -> Store:
    shutil.copytree(start[0], folder / "store")
    return Store(str(folder / "store"))


def test_align_then_evaluate_in_one_process(pipeline_start: Start, tmp_path: Path) -> None:
    store, spec = own_store(pipeline_start, tmp_path), align_spec(pipeline_start, IN_PROCESS)
    result = execute(spec, align.run, store)
    curve = result["facts"]["curve"]
    assert len(curve["loss"]) == len(curve["step"]) == result["facts"]["steps"]
    assert curve["objective"][-1] < curve["objective"][0]
    events = list(JournalReader(store, "align", spec.digest()).new_events())
    assert {e["kind"] for e in events} == {"metrics", "progress"}
    assert [e["step"] for e in events if e["kind"] == "metrics"] == curve["step"]

    _, records, sft, reference = pipeline_start
    evaluation = evaluate.Spec(
        records=records,
        policy=spec.ref(),
        reference=reference,
        start=sft,
        model=TINY,
        twin=spec.ref(),
        text=TEXT,
        evaluate=EvaluateConfig(kl_prompts=20, kl_max_new_tokens=16),
        gate=GateConfig(),
        golden_sources=GOLDEN,
        execution=IN_PROCESS,
    )
    facts = execute(evaluation, evaluate.run, store)["facts"]
    overall = facts["parts"]["all"]["accuracy"]["policy"]
    assert overall["low"] <= overall["value"] <= overall["high"]
    assert facts["lift"]["twin_all"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": overall["n"]}, "a policy against itself"
    assert {rule["name"] for rule in facts["gate"]["rules"]} == {"accuracy", "lift", "golden_drop", "kl"}
    pairs = pq.read_table(store.fetch("evaluate", evaluation.digest()) / "evaluation.parquet")
    hits = pairs.group_by("prompt_hash").aggregate([("margin_policy", "mean")]).num_rows
    assert hits == overall["n"]


def test_the_same_digest_is_never_computed_again(pipeline_start: Start, tmp_path: Path) -> None:
    store, spec = own_store(pipeline_start, tmp_path), align_spec(pipeline_start, IN_PROCESS)
    first = execute(spec, align.run, store)
    again = execute(spec, lambda *_: pytest.fail("ran again"), store)
    assert again == first
    wider = spec.model_copy(update={"execution": Execution(workers=4, micro_batch_size=1)})
    assert wider.digest() == spec.digest(), "how a stage runs is not what it computes"


def test_supervised_training_goes_on_from_another_stages_model(pipeline_start: Start, tmp_path: Path) -> None:
    """A round of RAFT: each record's best response, from the policy of the round before; its first loss is that policy's own."""
    store, (_, records, start, logps) = own_store(pipeline_start, tmp_path), pipeline_start
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


def test_a_model_from_a_folder_with_adapters_and_recomputation(pipeline_start: Start, tmp_path: Path) -> None:
    """The path of a downloaded model: no supervised start, LoRA, bfloat16, gradient checkpointing; adapters are merged at the end."""
    import torch
    from transformers import AutoModelForCausalLM

    store = own_store(pipeline_start, tmp_path)
    _, records, sft, _ = pipeline_start
    model = ModelConfig(source=str(store.fetch(sft.stage, sft.digest) / "model"))
    logps = reference.Spec(records=records, start=None, model=model, text=TEXT, execution=IN_PROCESS)
    execute(logps, reference.run, store)
    optimization = OptimizationConfig(epochs=8, batch_size=16, learning_rate=1e-2, precision="bfloat16", lora=LoraConfig(rank=4))
    spec = align.Spec(
        records=records,
        calibration=None,
        reference=logps.ref(),
        start=None,
        model=model,
        text=TEXT,
        align=AlignConfig(loss={"name": "dpo"}, objective={"name": "erm"}, optimization=optimization),
        execution=Execution(workers=0, gradient_checkpointing=True),
    )
    prepare(spec, store)
    result = execute(spec, align.run, store)
    accuracy = result["facts"]["curve"]["accuracy"]
    assert sum(accuracy[-4:]) / 4 > 0.7, accuracy  # it fits the preferences it sees again and again
    folder = store.fetch("align", spec.digest()) / "model"
    assert not list(folder.glob("adapter*")), "a plain model, not an adapter"
    before = AutoModelForCausalLM.from_pretrained(model.source).state_dict()
    after = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    changed = {name for name in before if (before[name] - after[name]).abs().max() > 1e-2}
    assert any("q_proj" in name for name in changed)
    assert not any("embed" in name or "norm" in name for name in changed)
