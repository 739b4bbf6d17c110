"""The model card of a registered version: a README.md in the Hugging Face form, from the store and the registry.

What it says is read from results: base model, data by digest and source, objective, evaluation with intervals, decisions. What nobody has
said (licence, intended use) is a marked gap, not an invention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from dora_core.evaluation.metrics import Interval, estimate_text
from infra.store.store import Store
from infra.tracking.model_registry import Decision, Registered
from tasks.runtime.descriptor import StageResult, read_result
from tasks.runtime.facts import AnyFacts
from tasks.runtime.spec import StageRef
from tasks.stages import compare, evaluate, ingest

GAP = "*to be filled in*"
DORA = "[DoRA](https://arxiv.org/abs/2504.05831)"


def model_card(
    store: Store, version: Registered, past: list[Decision], *, license: str | None = None, intended_use: str | None = None
) -> str:
    """Return the card as Markdown with its YAML head.

    Args:
        store: of the run that trained the model; results that are not in it are left out, and the card says so.
        past: decisions about the version, oldest first.
        license: SPDX id, or ``other``; None: a gap.
        intended_use: a sentence or more; None: a gap.
    """
    tags = version.tags
    policy = read_result(store, StageRef(stage=tags.get("dora.stage", ""), digest=tags.get("dora.digest", "")), AnyFacts)
    evaluation = read_result(store, StageRef(stage="evaluate", digest=tags.get("dora.evaluation", "")), evaluate.Facts)
    base = _base(policy)
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["dora", "preference-alignment"]}
    head |= ({"base_model": base} if base else {}) | {"license": license or "unknown"}
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip()}\n---",
        f"# {version.model}, version {version.version}",
        _summary(version),
        "## Use\n\n" + (intended_use or f"Intended use: {GAP}. Licence: {license or GAP}; the licences of base model and data apply."),
        "## Training\n\n" + "\n".join(_training(store, policy, base)),
        "## Evaluation\n\n" + "\n".join(_evaluation(store, evaluation)),
        "## Decisions\n\n" + "\n".join(_decisions(past)),
    ]
    return "\n\n".join(lines) + "\n"


def _base(policy: StageResult[Any] | None) -> str | None:
    model = policy.payload.get("model") if policy else None
    return model["source"] if isinstance(model, Mapping) and model.get("source") not in (None, "tiny") else None


def _summary(version: Registered) -> str:
    decision = version.tags.get("dora.decision", "registered")
    aliases = f" Aliases: {', '.join(version.aliases)}." if version.aliases else ""
    summary = version.tags.get("dora.summary", "")
    return f"Decision: **{decision}**.{aliases}" + (f" {summary[:1].upper()}{summary[1:]}." if summary else "")


def _training(store: Store, policy: StageResult[Any] | None, base: str | None) -> Iterator[str]:
    if policy is None:
        yield "The results of its training are not in this store."
        return
    yield f"- Base model: {base or 'trained from scratch on the data'}"
    align = policy.payload.get("align")
    if isinstance(align, Mapping):
        loss, objective, steps = align["loss"], align["objective"], align["optimization"]
        lam = objective.get("lambda")
        yield f"- Objective: {objective['name']} ({DORA})" + (f", λ = {lam}" if lam is not None else "") + f"; loss: {_named(loss)}"
        lora = steps.get("lora")
        yield (
            f"- Optimisation: {steps['epochs']:g} epochs of batches of {steps['batch_size']}, learning rate {steps['learning_rate']:g}, "
            + (f"LoRA of rank {lora['rank']}" if lora else "all weights")
        )
    yield f"- Digest of the training: `{policy.digest}`"
    records = policy.inputs.get("records")
    data = read_result(store, records, ingest.Facts) if records is not None and records.stage == ingest.STAGE.name else None
    if data is None:
        return
    golden = data.payload["data"].get("golden_sources") or []
    counts = data.facts.records
    yield f"- Data: {counts.train} records to train on, {counts.eval} held out; trusted sources: {', '.join(golden) or 'none'}"
    for path, digest in data.payload.get("fingerprints", {}).items():
        yield f"  - `{path.rsplit('/', 1)[-1]}`, sha256 `{digest}`"
    yield "\n| source | responses | share |\n|---|---|---|"
    for name, source in data.facts.sources.items():
        yield f"| {name} | {source.responses} | {source.share:.1%} |"


def _named(loss: Mapping[str, Any]) -> str:
    shown = [f"{name} {value}" for name, value in loss.items() if name != "name" and isinstance(value, int | float | str)]
    return f"{loss['name']} ({', '.join(shown)})" if shown else str(loss["name"])


def _evaluation(store: Store, evaluation: StageResult[evaluate.Facts] | None) -> Iterator[str]:
    if evaluation is None:
        yield "Its evaluation is not in this store."
        return
    facts = evaluation.facts
    level = evaluation.payload["evaluate"]["confidence"]
    yield f"| measure | estimate with {level:.0%} interval | held-out prompts |\n|---|---|---|"
    for name, interval in _measures(store, evaluation):
        if interval is not None:
            yield f"| {name} | {estimate_text(interval, '.3f')} | {interval.n} |"
    yield "\nRules of the gate:\n"
    for rule in facts.gate.rules:
        yield f"- {'undecided' if rule.uncertain else 'met' if rule.passed else 'not met'}: {rule.reason}"
    for name, reason in facts.gate.unchecked.items():
        yield f"- without evidence: {name}, {reason}"
    if facts.worst_group is not None:
        group = facts.worst_group
        yield f"\nWorst group: {group.name} ({group.by}), preference accuracy {estimate_text(group, '.3f')}."


def _measures(store: Store, evaluation: StageResult[evaluate.Facts]) -> Iterator[tuple[str, Interval | None]]:
    facts, whole = evaluation.facts, evaluation.facts.parts.get("all")
    compared = evaluation.inputs.get("comparison")
    comparison = read_result(store, compared, compare.Facts) if compared is not None else None
    for opponent, wins in comparison.facts.wins.items() if comparison else ():
        yield f"win rate against {opponent}", wins.win_rate
        yield f"win rate against {opponent}, at equal length", wins.length_controlled
    yield "preference accuracy", whole.accuracy.policy if whole else None
    yield "ranking accuracy over the start", facts.lift.start_all
    for name, twin in facts.twins.items():
        yield f"win rate against the start, minus that of {name}", twin.win_rate_lift
    yield "KL to the start, nats per response", facts.kl


def _decisions(past: list[Decision]) -> Iterator[str]:
    for entry in past:
        why = f": {entry['why']}" if entry.get("why") else ""
        yield f"- {entry['when']}: {entry['action'].replace('_', ' ')} by {entry['who']}{why}"
    if not past:
        yield "None."
