"""What the flows share while they run: tasks in order, the end of a cancelled run, and what Prefect's pages show."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun as PrefectRun
from prefect.flows import Flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run as this_run
from prefect.states import Completed, Failed, State

from dora_core.errors import RunStopped
from flows.config.models import RealignConfig
from flows.deployment.automations import STOPPED
from flows.planning.champion import champions
from flows.planning.plan import Plan, PlannedStage, Until, build_plan
from flows.report.approval import decision_lines, gate_table
from flows.report.comparison import comparison_table
from flows.running.approval import ask, settle, was_suspended
from flows.running.events import announce
from flows.running.gpu_slots import AWAY_SECONDS, gpu_slot
from flows.running.manifest import FlowRun, notes
from flows.running.session import COMMAND, Observer, Session, Suspends, release
from flows.running.stage_task import run_stage
from flows.upkeep.reap import end_task_runs, open_task_runs
from infra.settings import Places, Settings
from infra.store.store import Store
from tasks.stages import promote

ARTIFACT_SECONDS = 5.0
RECORDED_SECONDS = 0.5
"""Between two looks whether the server has recorded how the tasks have ended."""


def stop_what_it_left(flow: Flow[..., Any], flow_run: PrefectRun, state: State) -> None:
    """Prefect's hook for a flow run that was cancelled or crashed, perhaps with its process gone. The names are Prefect's."""
    why = f"its flow run is {state.name}{f': {state.message}' if state.message else ''}"
    release(Settings(), str(flow_run.id), why)
    with get_client(sync_client=True) as client:
        end_task_runs(client, flow_run.id, why)


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
        with recorded(), gpu_slot(build) as planned, Session.open(config, planned, flow_run, ProgressArtifacts) as session:
            run_plan(session)
    except RunStopped as stopped:
        stopped.run = session.manifest.content | {"warnings": session.warnings}
        publish_summary(session)
        return Failed(name=STOPPED, message=str(stopped), data=stopped)
    except Suspends as waits:
        publish_summary(session)
        ask(waits.question)
    publish_summary(session)
    return Completed(message=outcome(session.manifest.content), data=session.manifest.content | {"warnings": session.warnings})


@contextmanager
def recorded() -> Iterator[None]:
    """Stay until the server knows how the tasks have ended. It learns that from events, which Prefect sends again half a minute after a
    server was away, if the process still lives; the flow run's own state is a request, which is repeated."""
    try:
        yield
    except Exception:  # who is interrupted does not wait
        _wait_until_recorded()
        raise
    _wait_until_recorded()


def _wait_until_recorded() -> None:
    if COMMAND.get() is not None:  # the command's own API
        return
    deadline = time.monotonic() + AWAY_SECONDS
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError):  # away, or too busy to answer
                if not open_task_runs(client, UUID(this_run.id)):
                    return
            time.sleep(RECORDED_SECONDS)


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
    """Stages, warnings and links as a Prefect artifact: the page from which the other two systems are one click away. A server that is
    away at this moment costs the page, not the run."""
    for warning in session.warnings:
        get_run_logger().warning(warning)
    key = "".join(c if c.isalnum() else "-" for c in f"{session.manifest.content['flow']}-{session.manifest.content['project']}")
    try:
        create_markdown_artifact(_summary(session), key=key, description=f"Summary of {session.manifest.run_id}")
    except httpx.HTTPError as error:
        get_run_logger().warning(f"the summary could not be published: {type(error).__name__}: {error}")


def _summary(session: Session) -> str:
    content = session.manifest.content
    rows = [f"| {s['label']} | {s['state']} | {s['reason']} | {_time(s['seconds'])} | `{s['digest'][:12]}` |" for s in content["stages"]]
    links = [f"- {name}: {link}" for name, link in content["links"].items() if link]
    text = [
        f"# {content['name']}",
        f"{outcome(content)}",
        *_decided(session),
        *_compared(session),
        "| stage | state | why | time | digest |\n|---|---|---|---|---|\n" + "\n".join(rows),
        "\n".join(f"- {note}" for note in [*notes(content), *session.warnings]),
        "\n".join(links),
        f"Report: `dora report {content['run_id']}`",
    ]
    return "\n\n".join(text)


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
