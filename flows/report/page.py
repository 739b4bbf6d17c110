"""The page of one realignment or self-training: self-contained HTML from the run's manifest and the ``result.json`` of its stages.

Sections show one stage each, in self-training that of the last round that has one; ``rounds.py`` shows how rounds differ. Nothing is
computed here and nothing loaded from elsewhere: style and figures are inline, so the file can be mailed, archived and opened without a
server. Everything that comes from data is escaped. A stage without a result gets a sentence that says why.
"""

from __future__ import annotations

from typing import Any

from dora_core.errors import DoraError, did_you_mean
from flows.report.evaluation_figures import OPPONENTS, wins_of
from flows.report.html import inline_figures, render_template
from flows.report.rounds import rounds_view
from flows.run_record import RunRecord, StageRecord, read_record, read_records
from infra.store.store import Store
from tasks.stages.registry import STAGES

SECTIONS = tuple(name for name, stage in STAGES.items() if stage.section == "stage")
TRAINING = tuple(name for name, stage in STAGES.items() if stage.section == "training")
DECISIONS = {
    "promoted": "The aligned model passed the gate and is the champion now.",
    "challenger": "The aligned model passed the gate and is registered as challenger; a person decides.",
    "refused": "The aligned model was refused, by the gate or by a person; the champion stays.",
}
ENDED = {
    "failed": "failed",
    "cancelled": "was cancelled",
    "stopped": "stopped itself",
    "completed": "ended",
    "waiting": "waits for a person",
}
SCORES = {
    "implicit": "implicit reward of the policy",
    "likelihood": "likelihood per token, policy",
    "likelihood_start": "likelihood per token, start",
}
MEASURES = {"accuracy": "preference accuracy", "ranking": "ranking accuracy", "margin": "reward margin (nats)"}


class ReportError(DoraError):
    """There is no such run to report on."""


def find_run(store: Store, query: str) -> str:
    """The run id meant by ``latest``, a unique beginning of an id, or a path to the run's folder or its ``run.json``.

    Raises:
        ReportError: nothing or more than one run is meant; the hint lists what there is.
    """
    records = {run.run_id: run for run in read_records(store)}
    runs = sorted(records)
    if not runs:
        raise ReportError(
            f"there are no runs in {store.uri}", hint="start one with `dora realign -c FILE` or `dora demo`, or set DORA_STORE"
        )
    if query == "latest":
        return max(runs, key=lambda name: records[name].started)
    wanted = query.rstrip("/").removesuffix("/run.json").rsplit("/", 1)[-1]
    found = [name for name in runs if name == wanted] or [name for name in runs if name.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ReportError(f"{query!r} is the beginning of {len(found)} runs", hint=f"give more of the id: {', '.join(found)}")
    raise ReportError(f"there is no run {query!r} in {store.uri}", hint=did_you_mean(wanted, ["latest", *runs]))


def render(store: Store, run_id: str) -> str:
    """The whole page as text.

    Raises:
        ReportError: the run has no manifest.
    """
    import yaml

    run = read_record(store, run_id)
    if run is None:
        raise ReportError(f"run {run_id!r} has no manifest in {store.uri}", hint="list the runs with a wrong id: `dora report x`")
    stages = [s for s in run.stages if s.digest]
    results = {s.label: result for s in stages if (result := store.read_result(s.stage, s.digest))}
    shown = {stage: entry for stage in SECTIONS if (entry := _last(run.stages, stage, results))}
    trainings = [s for s in run.stages if s.stage in TRAINING and s.label in results]
    training = [s.label for s in trainings if s.round == trainings[-1].round]
    trained = any(s.stage == "align" or s.round for s in trainings)  # a round may fine-tune instead of aligning
    facts = {stage: results[entry.label]["facts"] for stage, entry in shown.items()}
    facts |= {label: results[label]["facts"] for label in training}
    return render_template(
        "page.html",
        run=run,
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
        links={name: url for name, url in run.links if url and url.startswith(("http://", "https://"))},
        results=results,
        facts=facts,
        figures={stage: inline_figures(stage, results[entry.label]) for stage, entry in shown.items()}
        | {label: inline_figures(label, results[label]) for label in training},
        round_of={stage: entry.round for stage, entry in shown.items()},
        missing={stage: _why_missing(run, stage) for stage in SECTIONS},
        missing_policy=None if trained else _why_missing(run, "align"),
        training=training,
        rounds=rounds_view(run, results),
        decision=_decision(run, facts),
        measures=MEASURES,
        scores=SCORES,
        opponents=OPPONENTS,
        wins=wins_of(facts["compare"]) if "compare" in facts else {},
    )


def _last(stages: list[StageRecord], stage: str, results: dict[str, Any]) -> StageRecord | None:
    """The manifest's entry of a section: the last one of the stage that has a result."""
    return next((s for s in reversed(stages) if s.stage == stage and s.label in results), None)


def _decision(run: RunRecord, facts: dict[str, Any]) -> tuple[str, str]:
    """The word in big letters and the sentence below it."""
    decision = facts["promote"]["decision"] if "promote" in facts else run.decision
    if decision:
        return decision, DECISIONS[decision]
    sentences = {
        "running": "The run has not ended; this page shows what is finished.",
        "failed": "The run failed before a decision; the champion stays.",
        "stopped": "The run stopped itself before a decision; the champion stays. The reason is below.",
        "cancelled": "The run was cancelled before a decision; the champion stays.",
        "completed": "This run ends without a decision: it had no promotion stage.",
        "waiting": "The run waits for a person to approve the model.",
    }
    return run.status, sentences[run.status]


def _why_missing(run: RunRecord, stage: str) -> str:
    """A sentence for a section that has nothing to show."""
    planned = [s for s in run.stages if s.stage == stage]
    if not planned:
        if stage in ("classify", "calibrate"):
            objective = run.config.get("align", {}).get("objective", {}).get("name", "chosen")
            return f"Not part of this run: the {objective} objective does not use calibration factors."
        return "Not part of this run."
    if planned[0].state == "failed":
        return f"The stage failed{': ' + run.error.message if run.error else '.'}"
    if planned[0].state in ("pending", "running"):
        if run.status == "running":
            return "The stage is running." if planned[0].state == "running" else "The stage has not run yet."
        return f"The stage did not finish: the run {ENDED[run.status]} first."
    return "The stage's result is no longer in the store."
