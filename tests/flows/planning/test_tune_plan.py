"""The plan of a search: shared stages once, trials by digest, and keys that change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from dora_core.errors import ConfigError
from flows.config.models import RealignConfig
from flows.config.search_space import SearchConfig, parse_dimensions
from flows.planning import tune_plan
from flows.planning.plan import build_plan
from flows.planning.tune_plan import AS_CONFIGURED, plan_search, trial_values, with_values
from infra.store.store import Store
from tests.flows.planning.test_plan import load


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def search(*over: str, trials: int = 4) -> SearchConfig:
    return SearchConfig(dimensions=parse_dimensions(over), trials=trials)


def test_trials_of_one_alignment_share_everything_before_it_with_a_realignment(tmp_path: Path, mixture: Path, store: Store) -> None:
    config = load(tmp_path, mixture, "align.objective.name=dora")
    plan, found = plan_search(config, search("align.objective.lambda=0.1..10:log"), store)
    labels = ["ingest", "drift", "classify", "calibrate", "sft", "reference", "training_data", "tune"]
    assert [stage.label for stage in plan.stages] == labels
    whole = {stage.label: stage.digest for stage in build_plan(config, store).stages}
    assert {stage.label: stage.digest for stage in plan.stages[:-2]} == {label: whole[label] for label in labels[:-2]}
    assert plan.stages[-2].digest != whole["training_data"], "without the held-out prompts"
    assert list(found.trials) == [AS_CONFIGURED, "trial 1", "trial 2", "trial 3", "trial 4"]
    assert len({spec.digest() for spec in found.trials.values()}) == 5
    lambdas = [values.get("align.objective.lambda", "auto") for values in found.values.values()]
    assert [spec.align.objective.lam for spec in found.trials.values()] == lambdas and lambdas[0] == "auto"


def test_a_search_may_vary_what_comes_before_the_alignment(tmp_path: Path, mixture: Path, store: Store) -> None:
    config = load(tmp_path, mixture, "align.objective.name=dora")
    plan, _ = plan_search(config, search("calibration.temper=0.5,1.0"), store)
    labels = [stage.label for stage in plan.stages]
    assert labels.count("classify") == 1 and [label for label in labels if label.startswith("calibrate")] == [
        "calibrate", "calibrate (trial 1)", "calibrate (trial 2)",
    ]  # fmt: skip
    assert [label for label in labels if label.startswith("training_data")][-1] == "training_data (trial 2)" and labels[-1] == "tune"


def test_the_configuration_itself_is_not_tried_twice(tmp_path: Path, mixture: Path, store: Store) -> None:
    config = load(tmp_path, mixture, "align.loss={name: dpo, beta: 0.1}")
    _, found = plan_search(config, search("align.loss.beta=0.1,0.2"), store)
    assert list(found.values.values()) == [{}, {"align.loss.beta": 0.2}]


def test_a_parameter_of_the_default_loss_comes_with_its_name(tmp_path: Path, mixture: Path) -> None:
    config = load(tmp_path, mixture)
    assert trial_values(config, search("align.loss.beta=0.2,0.3"))["trial 1"] == {"align.loss.name": "dpo", "align.loss.beta": 0.2}


@pytest.mark.parametrize(("objective", "name"), [("erm", "lambda"), ("auto", "lambda"), ("auto", "ess_target")])
def test_a_key_that_changes_no_trial_is_refused(tmp_path: Path, mixture: Path, store: Store, objective: str, name: str) -> None:
    config, key = load(tmp_path, mixture, f"align.objective.name={objective}"), f"align.objective.{name}"
    with pytest.raises(ConfigError, match=f"--over {key}: the values change no trial; align.objective.name is {objective}"):
        plan_search(config, search(f"{key}=0.3,0.5"), store)
    with pytest.raises(ConfigError, match=f"--over {key}: the values"):
        plan_search(config, search(f"{key}=0.3,0.5", "align.optimization.batch_size=4,8"), store)


def test_a_value_that_is_not_allowed_names_trial_values_and_rule(tmp_path: Path, mixture: Path) -> None:
    config = load(tmp_path, mixture)
    with pytest.raises(
        ConfigError, match=r"--over gives trial 2 align.objective.ess_target=0.7, align.optimization.batch_size=0"
    ) as caught:
        with_values(config, {"align.objective.ess_target": 0.7, "align.optimization.batch_size": 0}, "trial 2")
    assert "must be at least 1" in caught.value.message and isinstance(config, RealignConfig)


def test_more_trials_keep_those_there_are(tmp_path: Path, mixture: Path, store: Store) -> None:
    config = load(tmp_path, mixture, "align.objective.name=dora")
    over = "align.objective.lambda=0.1..10:log"
    few, many = (plan_search(config, search(over, trials=n), store)[1].trials for n in (2, 5))
    assert {spec.digest() for spec in few.values()} < {spec.digest() for spec in many.values()}


def test_no_trial_reads_the_evaluation_split(tmp_path: Path, mixture: Path, store: Store) -> None:
    config = load(tmp_path, mixture)
    _, found = plan_search(config, search("align.optimization.batch_size=8,16"), store)
    assert {(spec.held_out.folds, spec.held_out.fold) for spec in found.trials.values()} == {(5, 0)}


def test_continuing_from_the_champion_is_refused_with_the_next_step(tmp_path: Path, mixture: Path, store: Store) -> None:
    config = load(tmp_path, mixture, "policy.start=champion")
    with pytest.raises(ConfigError, match=r"policy\.start=champion: a search compares trainings from the base") as caught:
        plan_search(config, search("align.loss.beta=0.2,0.3"), store)
    assert "--set policy.start=base" in (caught.value.hint or "")


def test_trials_are_held_against_this_machine_s_memory_as_an_alignment_is(
    tmp_path: Path, mixture: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = set[str]()
    monkeypatch.setattr(tune_plan, "refuse_too_large", lambda _, running: trainings.update(running))
    plan_search(load(tmp_path, mixture), search("align.loss.beta=0.2,0.3"), store)
    assert {"sft", "align"} <= trainings
