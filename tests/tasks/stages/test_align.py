"""The stage ``align`` in one process. Faults, and Ray Train: ``tests/tasks/training``."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dora_core.config.alignment import AlignConfig
from dora_core.config.execution import Execution
from dora_core.config.method import LoraConfig, ModelConfig, OptimizationConfig
from dora_core.errors import DataError
from dora_core.models.loading import build_policy, save_model, train_tokenizer
from infra.store.journal import JournalReader
from infra.store.store import Store
from tasks.runtime.stage import StageRef, execute
from tasks.stages import align, reference
from tasks.tables.record_selection import RecordSelection
from tests.dora_core.data.chat_families import SEPARATED
from tests.tasks import conftest
from tests.tasks.classified import ingested
from tests.tasks.conftest import IN_PROCESS, TEXT, prepare

Start = tuple[Path, StageRef, StageRef, StageRef]


@pytest.fixture
def store(pipeline_start: Start, tmp_path: Path) -> Store:
    return Store(str(shutil.copytree(pipeline_start[0], tmp_path / "store")))


def align_spec(start: Start) -> align.Spec:
    optimization = OptimizationConfig(epochs=2.0, batch_size=8, learning_rate=1e-3)
    return conftest.align_spec(start, AlignConfig(loss={"name": "dpo_pl"}, objective={"name": "dro"}, optimization=optimization))


def test_the_objective_falls_and_every_step_is_in_the_journal(pipeline_start: Start, store: Store) -> None:
    spec = align_spec(pipeline_start)
    result = execute(spec, align.run, store)
    curve = result["facts"]["curve"]
    assert len(curve["loss"]) == len(curve["step"]) == result["facts"]["steps"]
    assert curve["objective"][-1] < curve["objective"][0]
    events = list(JournalReader(store, "align", spec.digest()).new_events())
    assert {e["kind"] for e in events} == {"metrics", "progress"}
    assert [e["step"] for e in events if e["kind"] == "metrics"] == curve["step"]


def test_the_same_digest_is_never_computed_again(pipeline_start: Start, store: Store) -> None:
    spec = align_spec(pipeline_start)
    first = execute(spec, align.run, store)
    again = execute(spec, lambda *_: pytest.fail("ran again"), store)
    assert again == first
    wider = spec.model_copy(update={"execution": Execution(workers=4, micro_batch_size=1)})
    assert wider.digest() == spec.digest(), "how a stage runs is not what it computes"


def test_a_model_from_a_folder_with_adapters_and_recomputation(pipeline_start: Start, store: Store) -> None:
    """The path of a downloaded model: no supervised start, LoRA, bfloat16, gradient checkpointing; adapters are merged at the end."""
    import torch
    from transformers import AutoModelForCausalLM

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


def test_the_facts_name_loss_objective_and_the_heaviest_records(pipeline_start: Start, store: Store) -> None:
    result = execute(align_spec(pipeline_start), align.run, store)
    facts = align.STAGE.parse(result).facts
    assert (facts.loss.name, facts.objective.name) == ("dpo_pl", "dro")
    rows, weights = facts.curve.measures["heaviest_row"], facts.curve.measures["max_weight"]
    first = facts.heaviest[0]
    assert first.steps == max(rows.count(row) for row in rows) and first.max_weight <= max(weights)
    assert len({record.record_id for record in facts.heaviest}) == len(facts.heaviest) <= align.HEAVIEST_SHOWN
    assert facts.dump() == result["facts"], "parsing and dumping changes nothing"


def test_a_twin_of_part_of_the_records_takes_the_steps_of_all(pipeline_start: Start, store: Store) -> None:
    """Batches of 8: with n records training takes 2·⌈n/8⌉ steps; part of them is passed over more often, or, at equal epochs, is not."""
    whole = execute(align_spec(pipeline_start), align.run, store)["facts"]
    selection = RecordSelection(records="synthetic", golden_sources=["human"])
    twins = [align_spec(pipeline_start).evolve(selection=selection, equal_steps=equal) for equal in (True, False)]
    assert len({spec.digest() for spec in (align_spec(pipeline_start), *twins)}) == 3
    prepare(twins[0], store)
    steps, epochs = (execute(spec, align.run, store)["facts"] for spec in twins)
    assert steps["records"] == epochs["records"] < whole["records"]
    assert steps["steps"] == whole["steps"] == 2 * -(-whole["records"] // 8)
    assert epochs["steps"] == 2 * -(-epochs["records"] // 8) < whole["steps"]


def test_records_too_few_for_the_steps_of_all_are_refused(pipeline_start: Start, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align, "MOST_EPOCHS", 2)
    spec = align_spec(pipeline_start).evolve(selection=RecordSelection(records="synthetic", golden_sources=["human"]), equal_steps=True)
    prepare(spec, store)
    with pytest.raises(DataError, match=r"selected records would repeat \d times \(at most 2\)"):
        execute(spec, align.run, store)


def test_trajectories_are_read_and_learned_turn_by_turn(tmp_path: Path) -> None:
    """From rows to trained weights: the reference is the sum over the turns of the assistant, so training starts at a loss of log 2."""
    words = ["the cat sat", "on a mat", "one old dog", "ran home", "very far"]

    def talk(*texts: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]

    tokenizer = train_tokenizer(words * 3, 300)
    tokenizer.chat_template = SEPARATED
    save_model(build_policy(ModelConfig(hidden_size=32, layers=1, heads=2), tokenizer, 96), tokenizer, tmp_path / "model")
    rows = [
        {
            "chosen": talk(f"{words[i % 5]} {i}", words[1], words[2], words[3]),
            "rejected": talk(f"{words[i % 5]} {i}", words[4], words[0], words[2]),
        }
        for i in range(30)
    ]
    store = Store(str(tmp_path / "store"))
    records = ingested(store, tmp_path / "data", rows, source="human", messages={"learn_turns": "all"})
    model = ModelConfig(source=str(tmp_path / "model"))
    logps = reference.Spec(records=records, start=None, model=model, text=TEXT, execution=IN_PROCESS)
    execute(logps, reference.run, store)
    table = pq.read_table(store.fetch("reference", logps.digest()) / "logps.parquet").to_pylist()
    of_turns = [
        len(tokenizer(texts)["input_ids"][0]) + len(tokenizer(texts)["input_ids"][1]) + 2 for texts in (words[1:4:2], words[4:1:-2])
    ]
    assert [row["tokens"] for row in table[:2]] == of_turns, "two texts and two end tokens"
    optimization = OptimizationConfig(epochs=8, batch_size=8, learning_rate=1e-2)
    spec = align.Spec(
        records=records, calibration=None, reference=logps.ref(), start=None, model=model, text=TEXT,
        align=AlignConfig(loss={"name": "dpo"}, objective={"name": "erm"}, optimization=optimization), execution=IN_PROCESS,
    )  # fmt: skip
    prepare(spec, store)
    curve = execute(spec, align.run, store)["facts"]["curve"]
    assert curve["loss"][0] == pytest.approx(math.log(2), abs=1e-4) and curve["loss"][-1] < 0.3
