"""The page of one realignment: self-contained HTML from the run's manifest and the ``result.json`` of its stages.

Nothing is computed here and nothing loaded from elsewhere: style and figures are inline, so the file can be mailed, archived and opened
without a server. Everything that comes from data is escaped. A stage without a result gets a sentence that says why.
"""

from __future__ import annotations

from typing import Any

from dora_core.errors import DoraError, did_you_mean
from infra.report.html import inline_figures, render_template
from infra.store import Store

TRAINING = ("sft", "align")
DECISIONS = {
    "promoted": "The aligned model passed the gate and is the champion now.",
    "challenger": "The aligned model passed the gate and is registered as challenger; a person decides.",
    "refused": "The aligned model did not pass the gate; the champion stays.",
}
MEASURES = {"accuracy": "preference accuracy", "ranking": "ranking accuracy", "margin": "reward margin (nats)"}


class ReportError(DoraError):
    """There is no such run to report on."""


def find_run(store: Store, query: str) -> str:
    """The run id meant by ``latest``, a unique beginning of an id, or a path to the run's folder or its ``run.json``.

    Raises:
        ReportError: nothing or more than one run is meant; the hint lists what there is.
    """
    runs = [name for name in store.list("runs") if store.read_json(f"runs/{name}/run.json") is not None]
    if not runs:
        raise ReportError(
            f"there are no runs in {store.uri}", hint="start one with `dora realign -c FILE` or `dora demo`, or set DORA_STORE"
        )
    if query == "latest":
        return max(runs, key=lambda name: store.read_json(f"runs/{name}/run.json")["started"])
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

    run = store.read_json(f"runs/{run_id}/run.json")
    if run is None:
        raise ReportError(f"run {run_id!r} has no manifest in {store.uri}", hint="list the runs with a wrong id: `dora report x`")
    results = {s["label"]: store.read_result(s["stage"], s["digest"]) for s in run["stages"] if s["digest"]}
    facts = {label: result["facts"] for label, result in results.items() if result}
    return render_template(
        "page.html",
        run=run,
        config=yaml.safe_dump(run["config"], sort_keys=False, allow_unicode=True),
        links={name: url for name, url in run["links"].items() if url and url.startswith(("http://", "https://"))},
        results=results,
        facts=facts,
        figures={label: inline_figures(label, result) for label, result in results.items() if result},
        missing={stage: _why_missing(run, stage) for stage in ("ingest", "classify", "calibrate", "align", "evaluate", "promote")},
        training=[label for s in run["stages"] if s["stage"] in TRAINING and (label := s["label"]) in facts],
        decision=_decision(run, facts),
        measures=MEASURES,
    )


def _decision(run: dict[str, Any], facts: dict[str, Any]) -> tuple[str, str]:
    """The word in big letters and the sentence below it."""
    decision = facts["promote"]["decision"] if "promote" in facts else run["decision"]
    if decision:
        return decision, DECISIONS[decision]
    sentences = {
        "running": "The run has not ended; this page shows what is finished.",
        "failed": "The run failed before a decision; the champion stays.",
        "cancelled": "The run was cancelled before a decision; the champion stays.",
        "completed": "This run ends without a decision: it had no promotion stage.",
    }
    return run["status"], sentences[run["status"]]


def _why_missing(run: dict[str, Any], stage: str) -> str:
    """A sentence for a section that has nothing to show."""
    planned = [s for s in run["stages"] if s["stage"] == stage]
    if not planned:
        if stage in ("classify", "calibrate"):
            objective = run["config"].get("align", {}).get("objective", {}).get("name", "chosen")
            return f"Not part of this run: the {objective} objective does not use calibration factors."
        return "Not part of this run."
    if planned[0]["state"] == "failed":
        return f"The stage failed{': ' + run['error']['message'] if run['error'] else '.'}"
    if planned[0]["state"] in ("pending", "running"):
        if run["status"] == "running":
            return "The stage is running." if planned[0]["state"] == "running" else "The stage has not run yet."
        ended = "was cancelled" if run["status"] == "cancelled" else "failed"
        return f"The stage did not finish: the run {ended} first."
    return "The stage's result is no longer in the store."
