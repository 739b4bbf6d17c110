"""What happened, as Prefect events: for automations, webhooks, and whoever listens.

``dora.calibration.ready`` · ``dora.approval.asked`` · ``dora.promoted`` · ``dora.refused`` · ``dora.guard.stopped`` ·
``dora.drift.refused``, of the resource ``dora.project.<name>``, related to their flow run. An event is sent when something happens, not
again for a stage that is cached. Its payload holds figures, reasons and links; no prompts, no responses. An event that cannot be sent
costs a warning, not the run.
"""

from __future__ import annotations

from typing import Any

from prefect.events import emit_event

from flows.planning.plan import PlannedStage
from flows.running.session import Session
from tasks.stages.registry import STAGES, parse_result

PREFIX = "dora."


def announce(session: Session, stage: PlannedStage) -> None:
    """The event of a stage that has just run, if it has one."""
    entry = next(s for s in session.manifest.content["stages"] if s["label"] == stage.label)
    result = session.store.read_result(stage.stage, stage.digest)
    if entry["state"] != "ran" or result is None:
        return
    event = STAGES[stage.stage].event(parse_result(result), session.store)
    if event is not None:
        message = f"{stage.label}: {event.message}" if event.stops else event.message
        emit(session, f"{PREFIX}{event.name}", message, event.metrics, stage)


def emit(session: Session, event: str, message: str, figures: dict[str, float], stage: PlannedStage | None = None) -> None:
    """Send one event.

    Args:
        message: one sentence; the beginning of what a notice says.
        figures: numbers of the stage.
    """
    run, links = session.manifest.content, session.manifest.content["links"]
    project = {"prefect.resource.id": f"dora.project.{run['project']}", "prefect.resource.name": run["project"]}
    flow_run = {
        "prefect.resource.id": f"prefect.flow-run.{run['flow_run_id']}",
        "prefect.resource.role": "flow-run",
        "prefect.resource.name": run["name"],
    }
    payload: dict[str, Any] = {"project": run["project"], "run": run["name"], "run_id": run["run_id"], "message": message}
    payload |= {"link": links["prefect"] or "", "mlflow": session.tracker.url(session.parent_run) or "", "figures": figures}
    payload |= {"stage": stage.label, "digest": stage.digest} if stage else {}
    try:
        emit_event(event, project, related=[flow_run], payload=payload)
    except Exception as error:  # too large, or anything of Prefect's
        session.warnings.append(f"event {event} was not sent: {type(error).__name__}: {error}")
