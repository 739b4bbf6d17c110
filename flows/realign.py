"""The flow ``realign``: new preference data becomes an aligned, evaluated and, if it passes the gate, promoted model.

    ingest → classify → calibrate ┐
       └───→ sft → reference ─────┴→ align → evaluate → promote

The plan decides what runs (``flows/plan.py``), one task runs any stage (``flows/stage.py``), a session holds what they share
(``flows/session.py``). Tasks are called one after the other in the main thread, so that Ctrl-C and Prefect's cancellation reach
the loop that watches a Ray job and can stop it.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import FlowRun as PrefectFlowRun
from prefect.flows import Flow
from prefect.runtime import flow_run as this_run
from prefect.states import Completed, State

from flows.config import RealignConfig
from flows.plan import PlannedStage, Until
from flows.session import FlowRun, Observer, Session, release
from flows.stage import run_stage
from infra.settings import Settings

ARTIFACT_SECONDS = 5.0


def describe_run() -> str:
    """``"demo · dpo · dora λ=1"``: project, loss, objective."""
    config = this_run.parameters["config"]
    config = config if isinstance(config, RealignConfig) else RealignConfig.model_validate(config)
    objective = config.align.objective
    strength = "" if objective.name in ("erm", "reweight") else f" λ={objective.lam:g}"
    return f"{config.project} · {config.align.loss.name} · {objective.name}{strength}"


def stop_what_it_left(flow: Flow[..., Any], flow_run: PrefectFlowRun, state: State) -> None:
    """Prefect's hook for a flow run that was cancelled or crashed, perhaps with its process gone. The names are Prefect's."""
    release(Settings(), str(flow_run.id))


@flow(name="realign", flow_run_name=describe_run, persist_result=False, on_cancellation=[stop_what_it_left], on_crashed=[stop_what_it_left])
def realign(config: RealignConfig, until: Until = "promote") -> State[dict[str, Any]]:
    """Realign a model on preference data.

    Args:
        config: everything this realignment computes.
        until: stop after this stage.
    """
    with Session.open(config, until, FlowRun(this_run.id, this_run.name), ProgressArtifacts) as session:
        states: dict[str, State] = {}
        for stage in session.plan.stages:
            upstream = [states[label] for label in session.plan.upstream(stage)]
            task = run_stage.with_options(name=stage.label, task_run_name=literally(f"{stage.label} · {stage.reason}"))
            states[stage.label] = task(stage, upstream, session)
    publish_summary(session)
    return Completed(message=outcome(session.manifest.content), data=session.manifest.content | {"warnings": session.warnings})


def literally(name: str) -> str:
    """Prefect formats run names with ``str.format``; a reason may quote a setting with braces."""
    return name.replace("{", "{{").replace("}", "}}")


def outcome(manifest: dict[str, Any]) -> str:
    """``"promoted; 7 stages ran, 2 cached"``."""
    ran = sum(stage["state"] == "ran" for stage in manifest["stages"])
    counts = f"{ran} stages ran, {len(manifest['stages']) - ran} cached" if ran else "nothing to do: every stage was cached"
    return f"{manifest['decision']}; {counts}" if manifest["decision"] else counts


def publish_summary(session: Session) -> None:
    """Stages and links as a Prefect artifact: the page from which the other two systems are one click away."""
    content = session.manifest.content
    rows = [f"| {s['label']} | {s['state']} | {s['reason']} | {s['seconds']:.0f} s | `{s['digest'][:12]}` |" for s in content["stages"]]
    links = [f"- {name}: {link}" for name, link in content["links"].items() if link]
    text = [
        f"# {content['name']}",
        f"{outcome(content)}",
        "| stage | state | why | time | digest |\n|---|---|---|---|---|\n" + "\n".join(rows),
        "\n".join(links),
        f"Report: `dora report {content['run_id']}`",
    ]
    key = "".join(c if c.isalnum() else "-" for c in f"realign-{content['project']}")
    create_markdown_artifact("\n\n".join(text), key=key, description=f"Summary of {content['run_id']}")


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
