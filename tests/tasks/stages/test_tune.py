"""The stage ``tune`` on Ray Tune: three trials, killed midway and resumed; and the order of trials without Ray."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dora_core.errors import TrainingError
from dora_core.evaluation.metrics import Interval
from infra.store.store import Store
from tasks.runtime.stage import StageRef, execute, write_spec
from tasks.stages import tune
from tasks.stages._tune_facts import TrialFacts
from tests.shared_ray import EQUAL_PRIORITY, ROOT
from tests.tasks.conftest import prepare
from tests.tasks.facts import assert_round_trip
from tests.tasks.trials import TUNE, rung_files, search_of, trial_spec

Start = tuple[Path, StageRef, StageRef, StageRef]


def test_a_search_reads_what_its_trials_read_and_its_digest_covers_their_values(pipeline_start: Start) -> None:
    specs = [trial_spec(pipeline_start, learning_rate=rate) for rate in (1e-3, 3e-3)]
    search = search_of(specs)
    assert {ref.stage for ref in search.inputs().values()} == {"ingest", "sft", "reference"}
    assert "training_data" in {ref.stage for ref in search.predecessors().values()}
    assert search_of(specs[:1]).digest() != search.digest() == search_of(specs).digest()
    assert search_of(specs, minutes=3).digest() != search.digest(), "another budget continues"


def facts_of(name: str, loss: float, rungs: int, state: str = "finished") -> TrialFacts:
    interval = Interval(value=loss, low=loss, high=loss, n=20)
    rung = {"step": 1, "loss": loss, "accuracy": 0.5}
    return TrialFacts(name=name, digest="0", values={}, state=state, loss=interval, accuracy=interval, rungs=[rung] * rungs)  # type: ignore[arg-type]


def test_trials_that_came_farther_are_before_those_that_were_stopped_and_failed_ones_last() -> None:
    trials = [
        facts_of("stopped", 0.1, 1, "stopped"),
        facts_of("worse", 0.6, 2),
        facts_of("failed", 0.0, 2, "failed"),
        facts_of("best", 0.5, 2),
    ]
    assert [t.name for t in sorted(trials, key=lambda t: tune._rank(t, TUNE))] == ["best", "worse", "stopped", "failed"]
    assert sorted(trials, key=lambda t: tune._rank(t, TUNE.evolve(metric="accuracy")))[0].name == "worse"


# ----------------------------------------------------------------------------------------------------------- on Ray Tune


@pytest.fixture
def store(pipeline_start: Start, tmp_path: Path) -> Store:
    return Store(str(shutil.copytree(pipeline_start[0], tmp_path / "store")))


@pytest.mark.component
@pytest.mark.chaos
@pytest.mark.fault(6)
@pytest.mark.timeout(400)
def test_a_search_that_is_killed_midway_goes_on_and_repeats_nothing(
    pipeline_start: Start, store: Store, ray_cluster: None, tmp_path: Path
) -> None:
    """Three trials; the process of the search is killed when the first measurements are there."""
    import ray

    trials = [trial_spec(pipeline_start, learning_rate=rate) for rate in (3e-3, 1e-3, 1e-5)]
    search = search_of(trials)
    for spec in trials:
        prepare(spec, store)
    uri = write_spec(search, store)
    environment = os.environ | EQUAL_PRIORITY | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "tasks.stages", "tune", "--spec", uri]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 240
        while not any(rung_files(store, spec) for spec in trials):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = [rung_files(store, spec) for spec in trials]
    assert store.read_result("tune", search.digest()) is None, "killed midway"

    result = execute(search, tune.run, store)
    facts = tune.Facts.model_validate(result["facts"])
    after = [rung_files(store, spec) for spec in trials]
    for old, new in zip(before, after, strict=True):
        assert old.items() <= new.items(), "a measurement was computed again"
    found, there = sum(map(len, after)), sum(map(len, before))
    assert there >= 1 and facts.computed <= found - there, "trials that ran on for a moment after the kill are not counted here"
    assert {t.state for t in facts.trials} <= {"finished", "stopped"} and facts.trials[0].state == "finished"
    assert all((t.steps, t.planned) == ((6, 6) if t.state == "finished" else (2, 6)) for t in facts.trials)
    assert facts.golden_prompts == facts.trials[0].loss.n  # type: ignore[union-attr]
    assert not store.local(f"trial/{trials[0].digest()}/scratch").exists(), "checkpoints are deleted"

    again = execute(search, lambda *_: pytest.fail("ran again"), store)
    assert again == result


@pytest.mark.component
@pytest.mark.timeout(300)
def test_a_trial_that_cannot_train_ends_alone_and_a_search_of_such_trials_fails_with_its_reason(
    pipeline_start: Start, store: Store, ray_cluster: None
) -> None:
    good = trial_spec(pipeline_start)
    bad = good.evolve(align=good.align.evolve(drop_hardest=0.5))  # refused by the training: no record has a label probability
    prepare(good, store)
    search = search_of([good, bad])
    result = execute(search, tune.run, store)
    assert_round_trip(result)
    facts = tune.Facts.model_validate(result["facts"])
    assert [(t.name, t.state) for t in facts.trials] == [("trial 0", "finished"), ("trial 1", "failed")]
    assert "align.drop_hardest" in facts.trials[1].reason and any("align.drop_hardest" in warning for warning in facts.warnings)
    with pytest.raises(TrainingError, match=r"no trial has a measurement: align\.drop_hardest"):
        execute(search_of([bad]), tune.run, store)
