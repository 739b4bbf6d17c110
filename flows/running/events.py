"""Prefect events of finished stages and decisions, for automations, webhooks and other subscribers.

``dora.calibration.ready`` · ``dora.approval.asked`` · ``dora.promoted`` · ``dora.refused`` · ``dora.undecided`` ·
``dora.guard.stopped`` · ``dora.drift.refused``, of the resource ``dora.project.<name>``, related to their flow run. An event is sent when
something happens, not again for a stage that is cached. Its payload holds metrics, reasons and links; no prompts, no responses. An event
that cannot be sent becomes a warning; the run continues.
"""

from __future__ import annotations

from typing import Any

from prefect.events import emit_event

from flows.planning.planned_stage import PlannedStage
from flows.running.session import Session
from tasks.stages.registry import STAGES, parse_result

PREFIX = "dora."


def announce(session: Session, stage: PlannedStage) -> None:
    """Emit the event of a stage that has just run, if it has one."""
    result = session.store.read_result(stage.stage, stage.digest)
    if session.manifest.run.stage(stage.label).state != "ran" or result is None:
        return
    event = STAGES[stage.stage].event(parse_result(result), session.store)
    if event is not None:
        message = f"{stage.label}: {event.message}" if event.stops else event.message
        emit(session, f"{PREFIX}{event.name}", message, event.metrics, stage)


def emit(session: Session, event: str, message: str, metrics: dict[str, float], stage: PlannedStage | None = None) -> None:
    """Send one event.

    Args:
        message: one sentence; a notice begins with it.
        metrics: of the stage; ``figures`` in the payload.
    """
    run = session.manifest.run
    project = {"prefect.resource.id": f"dora.project.{run.project}", "prefect.resource.name": run.project}
    flow_run = {
        "prefect.resource.id": f"prefect.flow-run.{run.flow_run_id}",
        "prefect.resource.role": "flow-run",
        "prefect.resource.name": run.name,
    }
    payload: dict[str, Any] = {"project": run.project, "run": run.name, "run_id": run.run_id, "message": message}
    payload |= {"link": run.links.prefect or "", "mlflow": session.url or "", "figures": metrics}
    payload |= {"stage": stage.label, "digest": stage.digest} if stage else {}
    try:
        emit_event(event, project, related=[flow_run], payload=payload)
    except Exception as error:  # it is too large, or any failure of Prefect
        session.warnings.append(f"event {event} was not sent: {type(error).__name__}: {error}")
