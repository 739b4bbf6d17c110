"""Body of every flow: its stages as tasks in order, the end of a run that was stopped or cancelled, and its pages in Prefect."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun as PrefectRun
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException
from prefect.flows import Flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run as this_run
from prefect.states import Completed, Failed

from dora_core.errors import DoraError, RunStopped
from flows.config.models import RealignConfig
from flows.planning.model_checks import check_data
from flows.planning.plan import Until, build_plan
from flows.planning.planned_stage import Plan, PlannedStage
from flows.report.approval import decision_lines, gate_table
from flows.report.comparison import comparison_table
from flows.report.data_preview import facts_markdown
from flows.report.head import head_of, promotion_of
from flows.run_record import UNCHANGED, EndedRun, RunRecord
from flows.run_summary import evaluation_summary
from flows.running.abandoned import release
from flows.running.approval import ask, settle, was_suspended
from flows.running.artifact_keys import artifact_key
from flows.running.events import announce
from flows.running.gpu_slots import AWAY_SECONDS, gpu_slot
from flows.running.manifest import FlowRun
from flows.running.observer import COMMAND, Observer
from flows.running.question import Suspends
from flows.running.session import Session
from flows.running.stage_task import run_stage
from flows.running.states import STOPPED, describe
from flows.running.surroundings import Surroundings
from flows.running.task_runs import end_task_runs, open_task_runs
from infra.settings import Settings
from infra.store.journal import JournalEvent
from infra.store.store import Store
from tasks.runtime.descriptor import read_result
from tasks.runtime.spec import StageRef
from tasks.stages import compare, evaluate, ingest, promote
from tasks.stages.registry import parse_result

ARTIFACT_SECONDS = 5.0
RECORDED_SECONDS = 0.5
"""Interval of the polls in :func:`recorded`."""


def clean_up_dead_run(flow: Flow[..., Any], flow_run: PrefectRun, state: State) -> None:
    """Prefect hook: clean up after a flow run that was cancelled or crashed. Prefect sets the parameter names."""
    why = f"its flow run is {state.name}{f': {state.message}' if state.message else ''}"
    release(Settings(), str(flow_run.id), why)
    with get_client(sync_client=True) as client:
        end_task_runs(client, flow_run.id, why)


def run_plan(session: Session) -> None:
    """Run every stage of the plan as a task, one after the other in this thread, so that Ctrl-C and Prefect's cancellation interrupt the
    watcher of a Ray job, which then stops the job.

    A plan with nothing to run has no tasks: a night without news costs a second, not a dozen of task runs, events and MLflow runs.
    """
    if not session.plan.to_run:
        session.record_cached()
        return
    states: dict[str, Any] = {}  # Prefect passes the results of the states that a task is called with

    def run(stage: PlannedStage) -> None:
        upstream = [states[label] for label in session.plan.direct(stage) if label in states]
        task = run_stage.with_options(name=stage.label, task_run_name=literally(f"{stage.label} · {stage.reason}"))
        states[stage.label] = task(stage, upstream, session)
        announce(session, stage)
        stop_if_guarded(session, stage)
        check_after_reading(session, stage)

    for stage in session.plan.stages:
        if session.manifest.run.stage(stage.label).is_finished:  # before this flow run was suspended
            continue
        if isinstance(stage.spec, promote.Spec):
            settle(session, stage, run)
        else:
            run(stage)


def stop_if_guarded(session: Session, stage: PlannedStage) -> None:
    """End the run if the stage's facts contain a stop (a broken guard rail, refused drift); finished stages stay finished.

    Raises:
        RunStopped: with the stage's reason.
    """
    result = session.store.read_result(stage.stage, stage.digest)
    stop = parse_result(result).facts.stop if result else None
    if stop:
        raise RunStopped(f"{stage.label}: {stop.message}", hint=stop.hint)


def check_after_reading(session: Session, stage: PlannedStage) -> None:
    """Check the records that the plan could not know against the policy's files, before a heavy stage runs.

    Raises:
        DataError: the chat template refuses a conversation.
    """
    if isinstance(stage.spec, ingest.Spec) and isinstance(session.config, RealignConfig):
        result = read_result(session.store, stage.spec.ref(), ingest.Facts)
        if result is not None and any(planned.stage == "reference" for planned in session.plan.stages):
            check_data(session.config, result.facts.conversations)


def supervise(config: RealignConfig, until: Until, flow: str) -> State[EndedRun]:
    """Body of the flows that realign: plan, run every stage, publish the summary; also for a run that a guard rail has stopped."""

    here = Surroundings.of_run(ProgressArtifacts())

    def plan() -> Plan:
        return build_plan(config, here.store, until=until, mlflow_uri=here.places.mlflow_uri)

    flow_run = FlowRun(flow, this_run.id, this_run.name, is_again=was_suspended(), command=here.command)
    tag_run(config.project, None)
    try:
        with recorded(), gpu_slot(here, plan) as planned, Session.open(config, planned, flow_run, here) as session:
            run_plan(session)
    except RunStopped as stopped:
        stopped.run = ended(session)
        publish_summary(session)
        return Failed(name=STOPPED, message=str(stopped), data=stopped)
    except Suspends as waits:
        publish_summary(session)
        ask(waits.question)
    except PrefectException:
        raise
    except Exception as error:
        return failed(error, config.project)
    publish_summary(session)
    return Completed(message=outcome(here.store, session.manifest.run), data=ended(session))


def failed(error: Exception, project: str) -> State[EndedRun]:
    """Return the failed state of a flow run, with reason and next step as its message; a bug's traceback ends the log.

    A stage's traceback is in the log of its task; raised from here, Prefect would write it once more, and its own words before ours.
    """
    described = describe(error)
    sentence = f"{described.message.strip()}{f' ({described.hint.strip()})' if described.hint.strip() else ''}"
    get_run_logger().error(sentence)
    if not isinstance(error, DoraError):
        get_run_logger().error("where it happened:", exc_info=error)
    tag_run(project, "failed")
    return Failed(message=sentence, data=error)


def tag_run(project: str, decision: str | None) -> None:
    """Tag this flow run with its project and its decision, for the filters of Prefect's pages; other tags stay."""
    mine = ("project:", "decision:")
    tags = {tag for tag in this_run.tags or () if not tag.startswith(mine)} | {f"project:{project}"}
    tags |= {f"decision:{decision}"} if decision else set()
    with suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
        client.update_flow_run(UUID(this_run.id), tags=sorted(tags))


def ended(session: Session) -> EndedRun:
    return EndedRun(session.manifest.run, session.warnings)


@contextmanager
def recorded() -> Iterator[None]:
    """Wait at the end until the server has recorded how the tasks have ended. Their states travel as events, which Prefect sends again half
    a minute after an outage of the server, if the process still lives; the flow run's own state is a request, which is repeated."""
    try:
        yield
    except Exception:  # not on Ctrl-C or cancellation
        _wait_until_recorded()
        raise
    _wait_until_recorded()


def _wait_until_recorded() -> None:
    if COMMAND.get() is not None:  # a command has a private API
        return
    deadline = time.monotonic() + AWAY_SECONDS
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError):  # away, or too busy to answer
                if not open_task_runs(client, UUID(this_run.id)):
                    return
            time.sleep(RECORDED_SECONDS)


def literally(name: str) -> str:
    """Escape braces: Prefect formats run names with ``str.format``, and a reason may quote a setting with braces."""
    return name.replace("{", "{{").replace("}", "}}")


def outcome(store: Store, run: RunRecord) -> str:
    """Return ``"promoted: win rate against the start 0.640 [0.580, 0.700], at equal length 0.560 [0.510, 0.610]; 7 stages ran, 2 cached"``,
    or the reason for a stop or a missing decision."""
    if run.status == "stopped" and run.error is not None:
        return f"stopped: {run.error.message}"
    ran = run.ran
    counts = f"{ran} stage{'' if ran == 1 else 's'} ran, {len(run.stages) - ran} cached" if ran else "nothing to do: every stage was cached"
    decision = "waits for a decision" if run.status == "waiting" else run.remark or run.decision
    number = evaluation_summary(store, run).partition(";")[0] if decision == run.decision != UNCHANGED else ""
    return f"{decision}{f': {number}' if number else ''}; {counts}" if decision else counts


def publish_summary(session: Session) -> None:
    """Publish stages, warnings and links as a Prefect artifact: with links to Ray and MLflow. If the server does
    not answer, the page is missing; the run is unaffected."""
    for warning in session.warnings:
        get_run_logger().warning(warning)
    key = artifact_key(f"{session.manifest.run.flow}-{session.manifest.run.project}")
    try:
        create_markdown_artifact(_summary(session), key=key, description=f"Summary of {session.manifest.run_id}")
        if session.plan.to_run and (text := _data(session)):
            create_markdown_artifact(text, key=f"data-{key}", description=f"Data of {session.manifest.run_id}")
        for name, link in pages_of(session).items():
            create_link_artifact(link, name, artifact_key(f"{name}-{session.manifest.run.project}"), description=f"{name}: {link}")
        tag_run(session.manifest.run.project, session.manifest.run.decision or session.manifest.run.status)
    except httpx.HTTPError as error:
        get_run_logger().warning(f"the summary could not be published: {type(error).__name__}: {error}")


def pages_of(session: Session) -> dict[str, str]:
    """Return the pages of the run in MLflow by the name of their link; empty without a server, or for a run without work."""
    if session.parent_run is None or session.url is None:
        return {}
    promotion = promotion_of(session.store, session.manifest.run)
    model = (promotion.model_name, promotion.version) if promotion else None
    links = session.page.links(session.manifest.run, model)
    found = {"mlflow run": session.url, "report": links.get("report")}
    found |= {"model version": links.get(f"{model[0]} version {model[1]}")} if model else {}
    return {name: link for name, link in found.items() if link}


def _summary(session: Session) -> str:
    run = session.manifest.run
    rows = [f"| {s.label} | {s.state} | {s.reason} | {_time(s.seconds)} | `{s.digest[:12]}` |" for s in run.stages]
    links = [f"- {name}: {link}" for name, link in ({name: link for name, link in run.links if link} | pages_of(session)).items()]
    text = [
        f"# {run.name}",
        outcome(session.store, run),
        evaluation_summary(session.store, run),
        *_decided(session),
        *_compared(session),
        "| stage | state | why | time | digest |\n|---|---|---|---|---|\n" + "\n".join(rows),
        "\n".join(f"- {note}" for note in [*run.notes, *session.warnings]),
        "\n".join(links),
        f"Report: `dora report {run.run_id}`",
    ]
    return "\n\n".join(text)


def _data(session: Session) -> str:
    """Return the mappings and counts of the inputs as Markdown; empty without a result of ``ingest``."""
    stage = session.plan.stages[0]
    done = isinstance(stage.spec, ingest.Spec) and session.manifest.run.stage(stage.label).is_finished
    result = read_result(session.store, stage.spec.ref(), ingest.Facts) if done else None
    return facts_markdown(result.facts) if result else ""


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.0f} s"


def _decided(session: Session) -> list[str]:
    """Return the decision, the person who made it, and the rules of the gate, as Markdown."""
    spec, run = session.plan.stages[-1].spec, session.manifest.run
    promotion = promotion_of(session.store, run)
    if not isinstance(spec, promote.Spec) or promotion is None:
        return []
    if run.decision == UNCHANGED:
        return [f"- {head_of(run, promotion).text}"]
    evaluation = read_result(session.store, spec.evaluation, evaluate.Facts)
    gate = evaluation.facts.gate if evaluation else None
    lines = "\n".join(f"- {line}" for line in decision_lines(promotion, gate))
    return [lines, gate_table(gate)] if gate else [lines]


def _compared(session: Session) -> list[str]:
    """Return the last comparison with the start, the champion and the chosen responses, as a table."""
    done = [s for s in session.manifest.run.stages if s.stage == "compare" and s.is_finished]
    result = read_result(session.store, StageRef(stage="compare", digest=done[-1].digest), compare.Facts) if done else None
    return [comparison_table(result.facts)] if result else []


class ProgressArtifacts(Observer):
    """Progress of runs on a server: one progress bar per stage on the flow run's page, moved every few seconds at most."""

    def __init__(self) -> None:
        self._bars: dict[str, tuple[Any, float]] = {}
        self._percent: dict[str, float] = {}

    def event(self, stage: PlannedStage, event: JournalEvent) -> None:
        if event["kind"] == "notice":
            self._notice(stage, event["text"])
        if event["kind"] != "progress" or event["total"] <= 0:
            return
        percent = 100.0 * event["done"] / event["total"]
        self._percent[stage.label] = percent
        bar, moved = self._bars.get(stage.label, (None, 0.0))
        if bar is None:
            key = artifact_key(f"progress-{stage.label}")
            bar = create_progress_artifact(percent, key=key, description=f"{stage.label}: {event['unit']}")
        elif event["time"] - moved < ARTIFACT_SECONDS and percent < 100.0:
            return
        else:
            update_progress_artifact(bar, percent, description=f"{stage.label}: {event['unit']}")
        self._bars[stage.label] = (bar, event["time"])

    def _notice(self, stage: PlannedStage, text: str) -> None:
        """Say it in the log, and beside the bar until that moves on."""
        get_run_logger().warning(f"{stage.label}: {text}")
        bar, _ = self._bars.get(stage.label, (None, 0.0))
        if bar is not None:
            update_progress_artifact(bar, self._percent[stage.label], description=f"{stage.label}: {text}")
