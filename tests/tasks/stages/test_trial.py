"""The stage ``trial`` in one process: its data, its rungs, and what is never computed again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dora_core.data.records import fold_of
from dora_core.errors import DataError
from dora_core.evaluation.metrics import correct
from dora_core.training.alignment_data import AlignmentData
from infra.store.journal import JournalReader
from infra.store.store import Store
from tasks.runtime.stage import StageContext, StageRef, execute
from tasks.stages import trial
from tests.tasks.conftest import prepare
from tests.tasks.facts import assert_round_trip
from tests.tasks.trials import HELD_OUT, TUNE, rung_files, trial_spec

Start = tuple[Path, StageRef, StageRef, StageRef]


@pytest.fixture(scope="module")
def done(pipeline_start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, trial.Spec, trial.Facts]:
    """A trial that has run."""
    store = Store(str(shutil.copytree(pipeline_start[0], tmp_path_factory.mktemp("trial") / "store")))
    spec = trial_spec(pipeline_start)
    prepare(spec, store)
    result = execute(spec, trial.run, store)
    assert_round_trip(result)
    return store, spec, trial.Facts.model_validate(result["facts"])


def train_records(store: Store, spec: trial.Spec) -> list[dict]:
    path = store.fetch("ingest", spec.records.digest) / "records.parquet"
    return pq.read_table(path, filters=[("split", "=", "train")]).to_pylist()


def test_it_trains_on_no_held_out_prompt_and_is_measured_on_those_alone(done: tuple[Store, trial.Spec, trial.Facts]) -> None:
    store, spec, facts = done
    records = train_records(store, spec)
    held = [bool(fold_of(np.array([r["prompt_hash"]], np.uint64), 2)[0] == HELD_OUT.fold) for r in records]
    data = AlignmentData(store.fetch("training_data", spec.preparation()["data"].digest()) / "training_data.arrow")
    trained = {data[i].row for i in range(len(data))}
    assert trained and not any(held[row] for row in trained) and any(held)
    strict = {r["prompt_hash"] for r, out in zip(records, held, strict=True) if out and len({*r["rewards"]} - {None}) > 1}
    margins = pq.read_table(store.local(f"trial/{spec.digest()}/rungs/3.parquet"))
    assert {*margins["prompt_hash"].to_pylist()} == strict and facts.rungs[-1].loss.n == len(strict)


def test_rungs_are_shares_of_the_steps_of_the_kept_records(done: tuple[Store, trial.Spec, trial.Facts]) -> None:
    facts = done[2]
    assert [rung.milestone for rung in facts.rungs] == TUNE.milestones == [1, 3]
    # 12 steps of the alignment (max_steps), half of them in a trial: 6, the first rung after a third.
    assert [(rung.step, rung.steps) for rung in facts.rungs] == [(2, 6), (6, 6)]


def test_the_accuracy_is_that_of_the_margins_by_prompt(done: tuple[Store, trial.Spec, trial.Facts]) -> None:
    store, spec, facts = done
    table = pq.read_table(store.local(f"trial/{spec.digest()}/rungs/3.parquet")).to_pydict()
    right: dict[int, list[float]] = {}
    for prompt, margin in zip(table["prompt_hash"], table["margin"], strict=True):
        right.setdefault(prompt, []).append(float(correct(np.array([margin]))[0]))
    assert facts.rungs[-1].accuracy.value == pytest.approx(np.mean([np.mean(values) for values in right.values()]))


def test_curves_and_measurements_are_in_the_journal(done: tuple[Store, trial.Spec, trial.Facts]) -> None:
    store, spec, facts = done
    events = [e for e in JournalReader(store, "trial", spec.digest()).new_events() if e["kind"] == "metrics"]
    assert sorted(e["step"] for e in events if "grad_norm" in e["values"]) == list(range(6)), "no step twice"
    assert [e["values"]["golden_loss"] for e in events if "golden_loss" in e["values"]] == [rung.loss.value for rung in facts.rungs]


def test_a_trial_that_was_killed_after_a_rung_goes_on_and_ends_the_same(
    done: tuple[Store, trial.Spec, trial.Facts], pipeline_start: Start, tmp_path: Path
) -> None:
    whole, spec, facts = done
    store = Store(str(shutil.copytree(pipeline_start[0], tmp_path / "store")))
    prepare(spec, store)

    def dies(spec: trial.Spec, context: StageContext) -> trial.StageOutput:
        for _ in trial.rungs(spec, context):
            raise SystemExit
        raise AssertionError

    with pytest.raises(SystemExit):
        execute(spec, dies, store)
    before = rung_files(store, spec)
    assert [*before] == ["1.json"]
    again = trial.Facts.model_validate(execute(spec, trial.run, store)["facts"])
    assert rung_files(store, spec)["1.json"] == before["1.json"], "not computed again"
    margins = [pq.read_table(one.local(f"trial/{spec.digest()}/rungs/3.parquet"))["margin"].to_numpy() for one in (whole, store)]
    np.testing.assert_array_equal(*margins)
    assert [rung.loss for rung in again.rungs] == [rung.loss for rung in facts.rungs]


def test_other_rivals_are_the_same_trial_and_other_steps_are_not(pipeline_start: Start) -> None:
    spec = trial_spec(pipeline_start)
    assert spec.evolve(tune=TUNE.evolve(metric="accuracy", parallel=4)).digest() == spec.digest()
    assert spec.evolve(tune=TUNE.evolve(fraction=0.4)).digest() != spec.digest()


def test_hardly_any_golden_pair_is_refused_with_the_next_step(pipeline_start: Start, done: tuple[Store, trial.Spec, trial.Facts]) -> None:
    spec = done[1].evolve(golden_sources=["nobody"])
    with pytest.raises(DataError, match="0 of the held-out train prompts") as caught:
        execute(spec, trial.run, done[0])
    assert "data.golden_sources" in caught.value.hint
