"""What the flows share while they run: tasks in order, the end of a cancelled run, and what Prefect's pages show."""

from __future__ import annotations

from functools import partial
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import FlowRun as PrefectRun
from prefect.flows import Flow
from prefect.runtime import flow_run as this_run
from prefect.states import Completed, State

from dora_core.errors import RunStopped
from flows.approval import ask, settle, was_suspended
from flows.champion import champions
from flows.config import RealignConfig
from flows.events import announce
from flows.limits import gpu_slot
from flows.plan import Plan, PlannedStage, Until, build_plan
from flows.session import FlowRun, Observer, Session, Suspends, notes, release
from flows.stage import run_stage
from infra.report.approval import decision_lines, gate_table
from infra.report.comparison import comparison_table
from infra.settings import Places, Settings
from infra.store import Store
from tasks import promote

ARTIFACT_SECONDS = 5.0


def stop_what_it_left(flow: Flow[..., Any], flow_run: PrefectRun, state: State) -> None:
    """Prefect's hook for a flow run that was cancelled or crashed, perhaps with its process gone. The names are Prefect's."""
    release(Settings(), str(flow_run.id))


def run_plan(session: Session) -> None:
    """Every stage of the plan as a task, one after the other in this thread, so that Ctrl-C and Prefect's cancellation reach the loop
    that watches a Ray job and can stop it."""
    states: dict[str, State] = {}

    def run(stage: PlannedStage) -> None:
        upstream = [states[label] for label in session.plan.upstream(stage) if label in states]
        task = run_stage.with_options(name=stage.label, task_run_name=literally(f"{stage.label} · {stage.reason}"))
        states[stage.label] = task(stage, upstream, session)
        announce(session, stage)
        stop_if_told(session, stage)

    for stage in session.plan.stages:
        if session.manifest.is_finished(stage.label):  # before this flow run waited for a person
            continue
        if isinstance(stage.spec, promote.Spec):
            settle(session, stage, run)
        else:
            run(stage)


def stop_if_told(session: Session, stage: PlannedStage) -> None:
    """End the run where a stage's own finding asks for it (``facts["stop"]``); what is finished stays finished.

    Raises:
        RunStopped: with the stage's reason.
    """
    result = session.store.read_result(stage.stage, stage.digest)
    stop = result["facts"].get("stop") if result else None
    if stop:
        raise RunStopped(f"{stage.label}: {stop['message']}", hint=stop["hint"])


def supervise(config: RealignConfig, until: Until, flow: str) -> State[dict[str, Any]]:
    """The body of the flows that realign: plan, run every stage, summarise; also a run that a stage has stopped."""

    def build(store: Store, places: Places) -> Plan:
        return build_plan(config, store, until=until, champions=partial(champions, places, config, store))

    flow_run = FlowRun(flow, this_run.id, this_run.name, is_again=was_suspended())
    try:
        with gpu_slot(build) as planned, Session.open(config, planned, flow_run, ProgressArtifacts) as session:
            run_plan(session)
    except RunStopped as stopped:
        stopped.run = session.manifest.content | {"warnings": session.warnings}
        publish_summary(session)
        raise
    except Suspends as waits:
        publish_summary(session)
        ask(waits.question)
    publish_summary(session)
    return Completed(message=outcome(session.manifest.content), data=session.manifest.content | {"warnings": session.warnings})


def literally(name: str) -> str:
    """Prefect formats run names with ``str.format``; a reason may quote a setting with braces."""
    return name.replace("{", "{{").replace("}", "}}")


def outcome(manifest: dict[str, Any]) -> str:
    """``"promoted; 7 stages ran, 2 cached"``, or why the run was stopped or nothing was decided."""
    if manifest["status"] == "stopped":
        return f"stopped: {manifest['error']['message']}"
    ran = sum(stage["state"] == "ran" for stage in manifest["stages"])
    counts = (
        f"{ran} stage{'' if ran == 1 else 's'} ran, {len(manifest['stages']) - ran} cached"
        if ran
        else "nothing to do: every stage was cached"
    )
    decision = "waits for a decision" if manifest["status"] == "waiting" else manifest["remark"] or manifest["decision"]
    return f"{decision}; {counts}" if decision else counts


def publish_summary(session: Session) -> None:
    """Stages and links as a Prefect artifact: the page from which the other two systems are one click away."""
    content = session.manifest.content
    rows = [f"| {s['label']} | {s['state']} | {s['reason']} | {_time(s['seconds'])} | `{s['digest'][:12]}` |" for s in content["stages"]]
    links = [f"- {name}: {link}" for name, link in content["links"].items() if link]
    text = [
        f"# {content['name']}",
        f"{outcome(content)}",
        *_decided(session),
        *_compared(session),
        "| stage | state | why | time | digest |\n|---|---|---|---|---|\n" + "\n".join(rows),
        "\n".join(f"- {note}" for note in notes(content)),
        "\n".join(links),
        f"Report: `dora report {content['run_id']}`",
    ]
    key = "".join(c if c.isalnum() else "-" for c in f"{content['flow']}-{content['project']}")
    create_markdown_artifact("\n\n".join(text), key=key, description=f"Summary of {content['run_id']}")


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.0f} s"


def _decided(session: Session) -> list[str]:
    """The decision, who made it, and the rules of the gate."""
    stage = session.plan.stages[-1]
    result = session.store.read_result("promote", stage.digest) if isinstance(stage.spec, promote.Spec) else None
    if result is None:
        return []
    evaluation = session.store.read_result("evaluate", stage.spec.evaluation.digest)
    gate = evaluation["facts"]["gate"] if evaluation else None
    lines = "\n".join(f"- {line}" for line in decision_lines(result["facts"], gate))
    return [lines, gate_table(gate)] if gate else [lines]


def _compared(session: Session) -> list[str]:
    """The last comparison with the start, the champion and the chosen responses, as a table."""
    done = [s for s in session.manifest.content["stages"] if s["stage"] == "compare" and s["state"] in ("ran", "cached")]
    result = session.store.read_result("compare", done[-1]["digest"]) if done else None
    return [comparison_table(result["facts"])] if result else []


class ProgressArtifacts(Observer):
    """For runs on a server: one progress bar per stage on the flow run's page, moved every few seconds at most."""

    def __init__(self) -> None:
        self._bars: dict[str, tuple[Any, float]] = {}

    def event(self, stage: PlannedStage, event: dict[str, Any]) -> None:
        if event["kind"] != "progress" or event["total"] <= 0:
            return
        percent = 100.0 * event["done"] / event["total"]
        bar, moved = self._bars.get(stage.label, (None, 0.0))
        if bar is None:
            key = "".join(c if c.isalnum() else "-" for c in f"progress-{stage.label}")
            bar = create_progress_artifact(percent, key=key, description=f"{stage.label}: {event['unit']}")
        elif event["time"] - moved < ARTIFACT_SECONDS and percent < 100.0:
            return
        else:
            update_progress_artifact(bar, percent)
        self._bars[stage.label] = (bar, event["time"])
