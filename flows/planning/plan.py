"""The plan: every stage of a realignment with its digest, whether it runs, and why, before anything runs.

Specs point at their inputs by digest, so the whole chain is known from the configuration and the fingerprints of the
input files alone. "Why" compares each spec with the one of the project's last successful run (``projects/<project>/latest.json``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from dora_core.data.acceptance import Wanted
from dora_core.evaluation.benchmarks import check_installed
from flows.config.models import RealignConfig, SelfTrainConfig
from flows.planning.answers import answered_elsewhere
from flows.planning.champion import champion_to_continue, champions
from flows.planning.continuation import Continuation, continuation
from flows.planning.disk import refuse_full_disk
from flows.planning.latest import LatestStage, read_latest
from flows.planning.memory import refuse_too_large
from flows.planning.model_checks import Described, check_data, describe_policy
from flows.planning.planned_stage import Plan, PlannedStage, split_on_demand
from flows.planning.rounds import add_rounds
from flows.planning.specs import Chain, pinned
from flows.planning.twins import check_twins, wanted_twins
from infra.settings import Settings
from infra.store.store import SPEC, Store
from tasks.runtime.descriptor import StageResult, read_result
from tasks.runtime.spec import StageRef, StageSpec
from tasks.stages import drift, ingest
from tasks.stages._drift_facts import Previous

Until = Literal["calibrate", "align", "evaluate", "promote"]
MAX_CHANGES = 3
_COMPUTED_BEFORE = "cached: computed before from the same inputs and settings"

# Fields of specs whose key in the configuration has another name.
_CONFIG_KEYS = {
    "model": "policy",
    "aggregate": "calibration.aggregate",
    "golden_sources": "data.golden_sources",
    "model_name": "promotion.model_name",
    "mode": "promotion.mode",
}


def build_plan(config: RealignConfig, store: Store, *, until: Until = "promote", mlflow_uri: str | None = None) -> Plan:
    """Plan all stages: their specs, compared with the store and with the project's last run. Computes nothing, writes nothing.

    Args:
        until: the last stage wanted.
        mlflow_uri: of the registry with the champion, with which the policy is compared if the project has promoted a model before, and
            from which it continues under ``policy.start: champion``; None: neither.

    Raises:
        ServiceError: the registry does not answer, and the run is to continue from its champion.
        DataError, ConfigError: an input file is missing, its columns cannot be understood, or its rows cannot be used as configured.
        ModelError: a model is neither a folder nor a known id, or its files say that the run would fail (``model_checks.py``).
    """
    config = pinned(config)
    latest = read_latest(store, config.project)
    notes: list[str] = []
    registered = champions(mlflow_uri, config.model_name, store, notes.append) if mlflow_uri and "promote" in latest else []
    chain = _chain(config)
    continued = None
    if config.continues:
        champion = champion_to_continue(mlflow_uri, config.model_name, store) if mlflow_uri else None
        continued = continuation(champion, chain.given, chain.model, store, notes.append)
    _specs(chain, until, previous_results(latest, store), registered, continued)
    specs, labels = chain.specs, {spec.digest(): label for label, spec in chain.specs.items()}
    compared = [compare_with_last(label, spec, chain.rounds[label], latest.get(label), labels, store) for label, spec in specs.items()]
    stages, not_needed = split_on_demand(compared)
    running = [stage.spec.stage for stage in stages if not stage.cached]
    refuse_too_large(config, running)
    refuse_full_disk(config, running, store)
    notes += filter(None, (answered_elsewhere(stage.spec, store) for stage in stages if stage.cached))
    wanted = config.wanted if until != "calibrate" else config.wanted._replace(loss=None, groups=())
    read = check_inputs(stages[0], wanted, store)
    if read is not None and until != "calibrate":
        check_data(config, read.facts.conversations)
    described = describe_policy(config) if until != "calibrate" else Described()
    if until in ("evaluate", "promote"):
        if config.benchmarks is not None:
            check_installed()
        check_twins(config, None if read is None else [*read.facts.sources])
    shown = (*notes, *described.notes)
    return Plan(config.project, stages, fingerprints_of(stages[0]), records_of(read), shown, not_needed, described.lines)


def check_inputs(first: PlannedStage, wanted: Wanted, store: Store) -> StageResult[ingest.Facts] | None:
    """Refuse data that cannot be used as wanted; return the result of ``ingest``, the first stage, if it is cached.

    Raises:
        DataError, ConfigError: see :func:`build_plan`.
    """
    assert isinstance(first.spec, ingest.Spec), "a chain begins with its data"
    read = read_result(store, first.spec.ref(), ingest.Facts) if first.cached else None
    if read is None:
        ingest.check_inputs(first.spec, wanted)
    else:
        ingest.check_read(first.spec, read.facts, wanted)
    return read


def fingerprints_of(first: PlannedStage) -> dict[str, str]:
    """Return the fingerprints of the input files, from the stage ``ingest``."""
    assert isinstance(first.spec, ingest.Spec), "a chain begins with its data"
    return first.spec.fingerprints


def records_of(read: StageResult[ingest.Facts] | None) -> int | None:
    """Return the number of records; None where they were not read yet."""
    return None if read is None else read.facts.records.train + read.facts.records.eval


def _chain(config: RealignConfig) -> Chain:
    from dora_core.data.fingerprints import FingerprintMemory
    from dora_core.data.inputs import fingerprint_sources

    return Chain(config, fingerprint_sources(config.data, FingerprintMemory(Settings().fingerprints)))


def _specs(chain: Chain, until: Until, previous: Previous | None, champions: list[StageRef], continued: Continuation | None) -> None:
    """Add all stages.

    Args:
        continued: the champion to continue from, with its base, which evaluation compares with; None: the base is the start.
    """
    config = chain.config
    drift = chain.drift(previous) if config.needs_calibration or until == "calibrate" else None
    if continued is not None:
        chain.replay(continued.earlier, continued.base)
    calibration = chain.calibrate(drift) if drift is not None else None
    if until == "calibrate":
        return
    inputs = chain.alignment_inputs(calibration, None if continued is None else continued.champion)
    start, reference = inputs.start, inputs.reference
    twins = [] if until == "align" else wanted_twins(config)
    chain.twin_data(twins, start, reference)
    policy = chain.align(start, reference, calibration, race=inputs.race)
    if until == "align":
        return
    if isinstance(config, SelfTrainConfig):
        evaluation, policy = add_rounds(chain, start, reference, policy, champions)
        chain.round = None  # a promotion is the run's, not a round's
    else:
        trained = {name: chain.twin(name, start, reference) for name in twins}
        if continued is not None:  # held-out prompts are judged against the base, as in every night before
            chain.records, start = chain.given, continued.base
            reference = chain.reference(start, "reference base")
        evaluation = chain.evaluate(start, reference, policy, trained, chain.compare(policy, start, champions, trained))
    if until == "promote":
        chain.promote(evaluation, policy)


def previous_results(latest: dict[str, LatestStage], store: Store) -> Previous | None:
    """Return the last run's results on its data; None where its classifiers are gone."""
    refs = {
        stage: latest[stage].ref
        for stage in ("ingest", "classify", "calibrate")
        if stage in latest and store.is_done(stage, latest[stage].digest)
    }
    if not {"ingest", "classify"} <= refs.keys():
        return None
    return Previous(records=refs["ingest"], classify=refs["classify"], calibrate=refs.get("calibrate"))


# ------------------------------------------------------------------------------------------------------------- reasons


def compare_with_last(
    label: str, spec: StageSpec, round: int | None, before: LatestStage | None, labels: dict[str, str], store: Store
) -> PlannedStage:
    """Plan one stage: cached or not, and why, compared with that of the project's last run."""
    digest = spec.digest()
    cached = spec.is_done(store)
    result = store.read_result(spec.stage, before.digest if before else digest)
    seconds = result["seconds"] if result else None
    if cached:
        known = before if before is not None and before.digest == digest else None
        reason = f"cached: same inputs and settings as {known.run_id}" if known else _COMPUTED_BEFORE
    elif store.is_done(spec.stage, digest):
        reason = "runs: its result waits for a decision"
    elif before is not None and before.digest == digest:
        reason = "runs: its result was deleted or damaged"
    elif store.read_json(f"{spec.stage}/{digest}/{SPEC}") is not None:
        reason = "runs: an earlier attempt did not finish; what it completed is kept"
    elif before is None:
        reason = "runs: first time"
    else:
        reason = f"runs: {_why(before.payload, spec, labels)}"
    at_once = isinstance(spec, drift.Spec) and spec.previous is None  # a first run: nothing to compare, so no Ray job
    return PlannedStage(label, spec, cached, reason, seconds, nothing_heavy=at_once, round=round)


def _why(old: dict[str, Any], spec: StageSpec, labels: dict[str, str]) -> str:
    """Return the changes: ``"align.objective.lambda auto → 2.0; calibrate changed"``."""
    new = spec.payload()
    inputs = spec.inputs()
    before = {ref["digest"] for name in inputs for ref in _refs(old.get(name.partition(".")[0]))}
    named = (labels.get(ref.digest, f"{ref.stage} of an earlier run") for ref in inputs.values() if ref.digest not in before)
    changed_inputs = list(dict.fromkeys(named))
    dropped = [
        name
        for name in old.keys() & new.keys()
        if new[name] is None and isinstance(old[name], dict) and set(old[name]) == {"stage", "digest"}
    ]
    parts = [f"no {name} any more" for name in sorted(dropped)]
    skip = {name.partition(".")[0] for name in inputs} | {*dropped} | {name for name in old if _refs(old[name])}
    parts += _differences({k: v for k, v in old.items() if k not in skip}, {k: v for k, v in new.items() if k not in skip})
    if changed_inputs:
        parts.append(f"{', '.join(changed_inputs)} changed")
    return "; ".join(parts[:MAX_CHANGES]) + (f"; and {len(parts) - MAX_CHANGES} more changes" if len(parts) > MAX_CHANGES else "")


def _refs(value: Any) -> list[dict[str, str]]:
    """Return the stages that a field of a payload names: one, a list of them, or one per key."""
    if isinstance(value, dict) and set(value) != {"stage", "digest"}:
        value = list(value.values())
    return [ref for ref in (value if isinstance(value, list) else [value]) if isinstance(ref, dict) and set(ref) == {"stage", "digest"}]


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(k for k in old if k not in new)]:
            if old.get(key) == new.get(key):
                continue
            if path == "fingerprints":
                state = "is new" if key not in old else "is gone" if key not in new else "has new content"
                yield f"{key.rsplit('/', 1)[-1]} {state}"
            else:
                yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else _CONFIG_KEYS.get(key, key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            if a != b:
                yield from _differences(a, b, f"{path}.{index}")
    elif path == "version":
        yield f"the stage's code has version {new}, was {old}"
    else:
        yield f"{path} {_short(old)} → {_short(new)}"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
