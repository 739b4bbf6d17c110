"""The flows as deployments offer them: a form (``flows/deployment/forms.py``) in place of a whole configuration.

Each has the name of the flow that the command of that name runs, so that Prefect shows both kinds of runs together; the work is the same
function. ``infra/prefect.yaml`` declares their names and schedules.
"""

# ruff: noqa: B006, B008  # Prefect reads a form's defaults from the signature; sections are frozen, and the lists are never changed.

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run as this_run

from dora_core.errors import DoraError
from flows.config.models import MethodConfig, RealignConfig, SelfTrainConfig, StudyConfig
from flows.config.run_names import name_of_calibration, name_of_realignment, name_of_rounds
from flows.deployment.forms import (
    DEMO,
    Assignment,
    Calibration,
    ConfigFile,
    Configuration,
    Data,
    Grid,
    Method,
    Promotion,
    Rounds,
    Section,
    Training,
    configure,
)
from flows.run_record import EndedRun
from flows.running.naming import naming
from flows.running.supervise import clean_up_dead_run, supervise
from flows.study import name_of_study, supervise_study

served = partial(flow, persist_result=False, on_cancellation=[clean_up_dead_run], on_crashed=[clean_up_dead_run])


_CONFIGURED: dict[str, MethodConfig] = {}
"""Configurations by flow run: made once, for its name and for its work."""


def configured(model: type[Configuration]) -> Configuration:
    """Return the configuration of this flow run, from the form's values.

    Raises:
        ConfigError: as :func:`flows.deployment.forms.configure`.
    """
    config = _CONFIGURED.get(this_run.id)
    if config is None:
        given = this_run.parameters
        sections = [value for value in given.values() if isinstance(value, Section)]
        config = _CONFIGURED[this_run.id] = configure(model, given["config_file"], sections, given.get("overrides", []))
    assert isinstance(config, model), "a flow run has one configuration"
    return config


def named(model: type[Configuration], describe: Callable[[Configuration], str]) -> Callable[[], str]:
    """Return Prefect's callback for the run's name; the name of the form's file where the run itself is about to report a mistake."""

    def name() -> str:
        try:
            return describe(configured(model))
        except DoraError:
            return f"{this_run.flow_name} · {this_run.parameters['config_file']}"

    return name


@served(name="realign", flow_run_name=named(RealignConfig, naming(name_of_realignment)))
def realign(
    config_file: ConfigFile = DEMO,
    data: Data = Data(),
    method: Method = Method(),
    training: Training = Training(),
    promotion: Promotion = Promotion(),
    until: Literal["align", "evaluate", "promote"] = "promote",
    overrides: list[Assignment] = [],
) -> State[EndedRun]:
    """Align, evaluate and promote a model on preference data; only what changed is computed.

    Args:
        config_file: A YAML file on the machine that runs this (absolute, or in `<home>/configs`), or an example: demo, listwise.
        data: Training data. Blank fields stay as the file has them, here and below.
        method: Loss, robust objective and calibration factors.
        training: Settings of the alignment.
        promotion: Promotion of the model.
        until: The last stage wanted.
        overrides: Any other key of the configuration, as --set takes them: align.objective.ess_target=0.8
    """
    return supervise(configured(RealignConfig), until, "realign")


@served(name="calibrate", flow_run_name=named(RealignConfig, naming(name_of_calibration)))
def calibrate(
    config_file: ConfigFile = DEMO, data: Data = Data(), calibration: Calibration = Calibration(), overrides: list[Assignment] = []
) -> State[EndedRun]:
    """Fit the source classifiers and write the calibration factors; no model is trained.

    Args:
        config_file: A YAML file on the machine that runs this (absolute, or in `<home>/configs`), or an example: demo, listwise.
        data: Data to score. Blank fields stay as the file has them, here and below.
        calibration: From classifiers to factors.
        overrides: Any other key of the configuration, as --set takes them: classifier.folds=5
    """
    return supervise(configured(RealignConfig), "calibrate", "calibrate")


@served(name="self-train", flow_run_name=named(SelfTrainConfig, naming(name_of_rounds)))
def self_train(
    config_file: ConfigFile = DEMO,
    data: Data = Data(),
    method: Method = Method(),
    training: Training = Training(),
    rounds: Rounds = Rounds(),
    promotion: Promotion = Promotion(),
    overrides: list[Assignment] = [],
) -> State[EndedRun]:
    """Realign a model, then let it learn from its own judged samples, round by round, until done or stopped by a guard rail.

    Args:
        config_file: A YAML file on the machine that runs this (absolute, or in `<home>/configs`), or an example: demo, self-train.
        data: Training data. Blank fields stay as the file has them, here and below.
        method: Loss, robust objective and calibration factors.
        training: Settings of the alignment.
        rounds: Number of rounds, and their data.
        promotion: Promotion of the model.
        overrides: Any other key of the configuration, as --set takes them: rounds.guard.max_kl=10
    """
    return supervise(configured(SelfTrainConfig), "promote", "self-train")


@served(name="study", flow_run_name=named(StudyConfig, naming(name_of_study)))
def study(
    config_file: ConfigFile = "study-quick", grid: Grid = Grid(), training: Training = Training(), overrides: list[Assignment] = []
) -> State[EndedRun]:
    """Compare losses and robust objectives on generated data whose true densities and rewards are known.

    Args:
        config_file: A YAML file on the machine that runs this (absolute, or in `<home>/configs`), or an example: study-quick, study-full.
        grid: Comparisons and their repetitions. Blank fields stay as the file has them, here and below.
        training: Settings of every alignment.
        overrides: Any other key of the configuration, as --set takes them: golden_responses=1000
    """
    return supervise_study(configured(StudyConfig))
