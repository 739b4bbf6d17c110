"""``promotion.mode: ask``: suspend the run for a person's decision, and apply the answer.

On a server the run *suspends*: its process ends, so that the worker, the machine and the ``dora-gpus`` slot are free until the answer
(a *pause* would hold all three, and lose the question when the machine restarts). Prefect shows the form on the run's page; the answer
starts the run again, its finished stages stay as they are, and the stage ``promote`` runs with the answer. Nothing else has to be stored:
the question is a manifest with status waiting, the answer is Prefect's input of the flow run, the decision is in the registry.

An answer is valid for the evaluation that was shown: of this policy against this champion. If another version becomes champion
meanwhile, the resumed run evaluates against it, or at least puts the question again.

Questions expire by :func:`end_overdue`, which the flow `reap` calls: Prefect's own time-out of a suspended run would end it as *failed*.
Until that call an answer still counts.

A command has no page in Prefect: with a terminal it prompts there; without one the model stays challenger, and a note names the commands.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn
from uuid import UUID

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.input.actions import read_flow_run_input
from prefect.runtime import deployment as this_deployment
from prefect.states import Scheduled
from pydantic import Field

from flows.config.models import RealignConfig
from flows.planning.planned_stage import PlannedStage
from flows.report.approval import evidence_table
from flows.run_record import RunRecord, write_record
from flows.running.artifact_keys import artifact_key
from flows.running.events import emit
from flows.running.manifest import waiting
from flows.running.question import Question, Suspends
from flows.running.session import Session
from flows.running.states import RESUMING
from infra.settings import Settings
from infra.store.store import Store
from infra.tracking.tracker import UI_PAGES
from tasks.runtime.descriptor import read_result
from tasks.runtime.facts import F
from tasks.runtime.spec import StageRef
from tasks.stages import compare, evaluate, promote
from tasks.stages.promote import Answer


class Approval(RunInput):
    """The form on the page of a suspended run."""

    decision: Literal["approve", "reject"] = Field(description="approve: this version becomes champion; reject: the champion stays.")
    reason: str = Field(min_length=5, max_length=2000, description="Why; kept with the model version.")
    who: str = Field(min_length=2, max_length=64, description="Your name; kept with the model version.")


def settle(session: Session, stage: PlannedStage, run: Callable[[PlannedStage], None]) -> None:
    """Run ``promote``; if a person has to decide, run it again with the answer.

    Args:
        run: runs a stage as a task.

    Raises:
        Suspends: the question belongs on the flow run's page; :func:`ask` puts it there.
    """
    before = pending(session, stage) if session.on_server else None
    run(_with(stage, _entered(before) if before else None))
    question = pending(session, stage)
    if question is None:
        facts = _facts(session.store, stage.spec.ref(), promote.Facts)
        if facts.waits == "comparison":
            session.manifest.update(remark=f"not promoted: {facts.reasons[0]}")
        return
    asked = time.monotonic()
    answer = session.observer.decide(question)
    session.manifest.update(waited=session.manifest.run.waited + time.monotonic() - asked)
    if answer is not None:
        run(_with(stage, answer))
    elif not (session.on_server and this_deployment.id):
        session.manifest.stage(stage.label, notes=[f"waits for a decision: {question.commands()}"])
    elif read_flow_run_input(question.inputs["schema"]) is not None:  # it has been asked
        hours = _timeout_hours(session)
        session.manifest.update(remark=f"not promoted: no answer within {hours:g} h")
        session.manifest.stage(stage.label, notes=[f"no answer; decide with: {question.commands()}"])
    else:
        session.manifest.update(deadline=question.deadline)
        evaluation = session.store.read_result("evaluate", _evaluation(stage).digest)
        assert evaluation is not None, "a question has an evaluation"
        message = f"version {question.version} of {question.model} waits for approval until {_utc(question.deadline)}"
        emit(session, "dora.approval.asked", message, evaluation["metrics"], stage)
        raise Suspends(question)


def pending(session: Session, stage: PlannedStage) -> Question | None:
    """Return the question that the last run of the stage ``promote`` left open; None without one."""
    result = read_result(session.store, stage.spec.ref(), promote.Facts)
    if result is None or result.facts.waits != "person":
        return None
    name, version, champion = result.facts.model_name, result.facts.version, result.facts.champion_before
    deadline = time.time() + 3600 * _timeout_hours(session)
    text = "\n\n".join(
        [
            f"### Promote version {version} of `{name}`?",
            f"{_gate(session.store, stage)} Champion now: {f'version {champion}' if champion else 'none'}.",
            evidence(session.store, stage),
            "\n".join(f"- {line}" for line in _links(session, name, version)),
            f"Without an answer until {_utc(deadline)} it stays challenger.",
        ]
    )
    return Question(name, version, stage.digest, champion, deadline, text)


def _gate(store: Store, stage: PlannedStage) -> str:
    gate = _facts(store, _evaluation(stage), evaluate.Facts).gate
    return "It passed its gate." if gate.passed else "Its gate **cannot tell** whether it is good enough."


def evidence(store: Store, stage: PlannedStage) -> str:
    """Return the evaluation that a ``promote`` stage decides by, as Markdown."""
    evaluation = _evaluation(stage)
    result = store.read_result(evaluation.stage, evaluation.digest)
    assert result is not None, "promote has read its evaluation"
    compared = result["spec"]["comparison"]
    comparison = _facts(store, StageRef(**compared), compare.Facts) if compared else None
    return evidence_table(_facts(store, evaluation, evaluate.Facts), comparison)


def ask(question: Question) -> NoReturn:
    """Suspend this flow run with its form; Prefect ends the process.

    Raises:
        Pause: Prefect's own exception.
    """
    key = artifact_key(f"approval-{question.model}")
    create_markdown_artifact(question.text, key=key, description=f"Approval of {question.model} version {question.version}")
    suspend_flow_run(wait_for_input=Approval.with_initial_data(description=question.text), key=question.key)
    raise AssertionError("a question is asked once per flow run")


def was_suspended() -> bool:
    """Return whether another process has run this flow run until it was suspended. (Prefect's ``run_count`` leaves that one out.)"""
    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None and bool(context.flow_run.empirical_policy.pause_keys)


def end_overdue(settings: Settings, now: float | None = None) -> list[str]:
    """Start again the runs whose question has expired: they end as "not promoted". Runs that were cancelled or deleted while they
    waited get the status cancelled. For the flow `reap`.

    Args:
        now: epoch seconds; None = this moment.

    Returns:
        Ids of the runs that continue.
    """
    store, overdue = Store(settings.store_uri), []
    with get_client(sync_client=True) as client:
        for run in waiting(store):
            state = _state(client, run)
            if state is None or state.is_final():
                write_record(store, run.evolve(status="cancelled"))
            elif state.is_paused() and run.deadline is not None and run.deadline < (now or time.time()):
                assert run.flow_run_id is not None, "a run with a deadline has a flow run"
                again: State[Any] = Scheduled(name=RESUMING, message="no answer in time")
                client.set_flow_run_state(UUID(run.flow_run_id), again)
                overdue.append(run.run_id)
    return overdue


# ------------------------------------------------------------------------------------------------------------- details


def _facts(store: Store, ref: StageRef, facts: type[F]) -> F:
    result = read_result(store, ref, facts)
    assert result is not None, f"{ref.stage} is done but has no result"
    return result.facts


def _timeout_hours(session: Session) -> float:
    assert isinstance(session.config, RealignConfig), "a plan with promote has promotion settings"
    return session.config.promotion.ask_timeout_hours


def _evaluation(stage: PlannedStage) -> StageRef:
    assert isinstance(stage.spec, promote.Spec), "only promote decides"
    return stage.spec.evaluation


def _utc(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def _with(stage: PlannedStage, answer: Answer | None) -> PlannedStage:
    return replace(stage, spec=stage.spec.evolve(answer=answer)) if answer else stage


def _entered(question: Question) -> Answer | None:
    """Return the answer entered into the form of this flow run; None without a question or an answer."""
    entered = read_flow_run_input(question.inputs["response"])
    if entered is None:
        return None
    form = Approval.model_validate(entered)
    who, why = (" ".join(text.split()) for text in (form.who, form.reason))
    return Answer(approve=form.decision == "approve", who=who, why=why, champion=question.champion)


def _links(session: Session, name: str, version: str) -> list[str]:
    run, uri = session.url, session.ray.places.page(session.tracker.uri)
    links = [f"[MLflow run]({run})"] if run else []
    if uri.startswith("http"):
        links.append(f"[model version]({uri.rstrip('/')}/#/models/{name}/versions/{version}{UI_PAGES})")
    return [*links, f"report: `dora report {session.manifest.run_id}`"]


def _state(client: SyncPrefectClient, run: RunRecord) -> State | None:
    """Return the flow run's state, or None if it was deleted."""
    assert run.flow_run_id is not None, "a waiting run has a flow run"
    try:
        return client.read_flow_run(UUID(run.flow_run_id)).state
    except ObjectNotFound:
        return None
