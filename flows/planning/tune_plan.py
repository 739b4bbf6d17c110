"""The plan of a search: the stages that its trials read, each once, then the stage ``tune`` with the trials.

Every trial is the chain of a realignment with other values, up to its alignment, so a search may vary the classifier, calibration or the
supervised start as well as the alignment; what trials have in common is one stage.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dora_core.errors import ConfigError
from flows.config.loading import validate
from flows.config.models import RealignConfig
from flows.config.search_space import FORMS, SearchConfig, sample_values
from flows.config.yaml_text import apply_override
from flows.planning.disk import refuse_full_disk
from flows.planning.latest import read_latest
from flows.planning.memory import refuse_too_large
from flows.planning.model_checks import check_data, describe_policy
from flows.planning.plan import check_inputs, compare_with_last, fingerprints_of, previous_results, records_of
from flows.planning.planned_stage import Plan, split_on_demand
from flows.planning.specs import Chain, pinned
from infra.settings import Settings
from infra.store.store import Store
from tasks.runtime.spec import StageRef, StageSpec
from tasks.stages import trial, tune
from tasks.stages._drift_facts import Previous

AS_CONFIGURED = "as configured"


@dataclass
class SearchPlan:
    """Specs of a search.

    Attributes:
        shared: stages that the trials read, by label, in running order.
        trials: by name; the first is the configuration as it is.
        prepared: on-demand stages that trials read which have measurements to come.
    """

    shared: dict[str, StageSpec] = field(default_factory=dict)
    trials: dict[str, trial.Spec] = field(default_factory=dict)
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    prepared: list[StageRef] = field(default_factory=list)

    def add(self, label: str, spec: StageSpec, name: str) -> None:
        """Add a stage that is not there yet; a label that another one has gets the trial's name."""
        if all(spec.digest() != other.digest() for other in self.shared.values()):
            self.shared[label if label not in self.shared else f"{label} ({name})"] = spec

    def spec(self, config: RealignConfig, minutes: float | None) -> tune.Spec:
        """Return the spec of the stage ``tune``."""
        return tune.search_spec(self.trials, self.values, config.tune, minutes, self.prepared)


def with_values(config: RealignConfig, values: dict[str, Any], name: str) -> RealignConfig:
    """Return the configuration with other values by dotted key, as ``--set`` sets them.

    Raises:
        ConfigError: names the trial, its values and every mistake.
    """
    try:
        sections = {key.split(".")[0]: getattr(config, key.split(".")[0]) for key in values}
        given = {section: model.model_dump(mode="json", by_alias=True, exclude_unset=True) for section, model in sections.items()}
        for key, value in values.items():
            apply_override(given, (key, copy.deepcopy(value)))
        changed = {
            section: validate(given[section], place=section, folder=Path.cwd(), model=type(model)) for section, model in sections.items()
        }
        return config.evolve(**changed)
    except (ConfigError, ValidationError) as error:
        reason = error.message if isinstance(error, ConfigError) else "; ".join(each["msg"] for each in error.errors())
        tried = ", ".join(f"{key}={value}" for key, value in values.items())
        raise ConfigError(f"--over gives {name} {tried}, which is not allowed: {reason}", hint=f"change --over; {FORMS}") from None


def trial_values(config: RealignConfig, search: SearchConfig) -> dict[str, dict[str, Any]]:
    """Return the values of every trial by its name, the configuration as it is first.

    A parameter of the default loss needs its name beside it, also in the line to configure.
    """
    sampled = sample_values(search.dimensions, search.trials, config.tune.seed)
    if "loss" not in config.align.model_fields_set and any(d.key.startswith("align.loss.") for d in search.dimensions):
        sampled = [{"align.loss.name": config.align.loss.name} | values for values in sampled]
    return {AS_CONFIGURED: {}} | {f"trial {number}": values for number, values in enumerate(sampled, 1)}


def trial_configs(config: RealignConfig, search: SearchConfig) -> dict[str, RealignConfig]:
    """Return the configuration of every trial by its name.

    Raises:
        ConfigError: a sampled value is not allowed.
    """
    return {name: with_values(config, values, name) for name, values in trial_values(config, search).items()}


def search_specs(
    config: RealignConfig, named: RealignConfig, search: SearchConfig, fingerprints: dict[str, str], previous: Previous | None, store: Store
) -> SearchPlan:
    """Build the specs of all trials; two with the same digest are one.

    Args:
        named: the configuration as :func:`flows.planning.specs.pinned` returns it.

    Raises:
        ConfigError: a key of the search changes no trial.
    """
    plan, values = SearchPlan(), trial_values(config, search)

    def build(tried: dict[str, Any], name: str) -> tuple[Chain, trial.Spec]:
        # A model is looked up once, on the hub or by its files, unless the search varies it.
        varies_model = any(key.startswith("classifier.encoder") for key in tried)
        chain = Chain(pinned(with_values(config, tried, name)) if varies_model else with_values(named, tried, name), fingerprints)
        calibration = chain.calibrate(chain.drift(previous)) if chain.config.needs_calibration else None
        return chain, chain.trial(chain.alignment_inputs(calibration))

    for name, tried in values.items():
        chain, spec = build(tried, name)
        if any(spec.digest() == other.digest() for other in plan.trials.values()):
            continue
        plan.trials[name], plan.values[name] = spec, tried
        for label, stage in chain.specs.items():
            plan.add(label, stage, name)
        for data in spec.preparation().values():
            plan.add(data.stage, data, name)
            if not _is_measured(spec, store) and data.ref() not in plan.prepared:
                plan.prepared.append(data.ref())
    _check_effect(search, values, lambda tried: build(tried, "a trial")[1].digest(), config)
    return plan


def _is_measured(spec: trial.Spec, store: Store) -> bool:
    return store.read_json(f"{spec.stage}/{spec.digest()}/rungs/{spec.tune.milestones[-1]}.json") is not None


def _check_effect(
    search: SearchConfig, values: dict[str, dict[str, Any]], digest: Callable[[dict[str, Any]], str], config: RealignConfig
) -> None:
    """Refuse keys that this configuration does not read, for instance λ under ``erm``: two values of one make the same trial."""

    def is_idle(key: str) -> bool:
        base, *others = (tried for tried in values.values() if key in tried)
        other = next((tried[key] for tried in others if tried[key] != base[key]), base[key])
        try:
            return bool(other != base[key] and digest(base) == digest(base | {key: other}))
        except ConfigError:  # not allowed beside the other values of the first trial
            return False

    if idle := [dimension.key for dimension in search.dimensions if is_idle(dimension.key)]:
        raise ConfigError(
            f"--over {', '.join(idle)}: the values change no trial; align.objective.name is {config.align.objective.name}",
            hint="vary a key that this configuration reads: with objective auto the race chooses λ, and erm and reweight have none",
        )


def plan_search(config: RealignConfig, search: SearchConfig, store: Store) -> tuple[Plan, SearchPlan]:
    """Plan a search: its specs compared with the store and with the project's last run. Computes nothing, writes nothing.

    Raises:
        DataError, ConfigError: see :func:`flows.planning.plan.build_plan` and :func:`search_specs`.
    """
    from dora_core.data.fingerprints import FingerprintMemory
    from dora_core.data.inputs import fingerprint_sources

    if config.continues:
        raise ConfigError(
            "policy.start=champion: a search compares trainings from the base",
            hint="--set policy.start=base for the search, then use its values",
        )
    latest = read_latest(store, config.project)
    fingerprints = fingerprint_sources(config.data, FingerprintMemory(Settings().fingerprints))
    named = pinned(config)
    specs = search_specs(config, named, search, fingerprints, previous_results(latest, store), store)
    wanted = specs.shared | {tune.Spec.stage: specs.spec(config, search.minutes)}
    labels = {spec.digest(): label for label, spec in wanted.items()}
    compared = [compare_with_last(label, spec, None, latest.get(label), labels, store) for label, spec in wanted.items()]
    stages, not_needed = split_on_demand(compared)
    running = {stage.spec.stage for stage in stages if not stage.cached}
    running |= {"align"} if tune.Spec.stage in running else set()  # a trial is an alignment
    refuse_too_large(named, running)
    refuse_full_disk(named, running, store)
    read = check_inputs(stages[0], config.wanted, store)
    if read is not None:
        check_data(named, read.facts.conversations)
    shown = describe_policy(named)
    plan = Plan(config.project, stages, fingerprints_of(stages[0]), records_of(read), tuple(shown.notes), not_needed, shown.lines)
    return plan, specs
