"""What the flows share while they run: tasks in order, the end of a cancelled run, and what Prefect's pages show."""

from __future__ import annotations

from typing import Any

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import FlowRun
from prefect.flows import Flow
from prefect.states import State

from flows.plan import PlannedStage
from flows.session import Observer, Session, notes, release
from flows.stage import run_stage
from infra.settings import Settings

ARTIFACT_SECONDS = 5.0


def stop_what_it_left(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """Prefect's hook for a flow run that was cancelled or crashed, perhaps with its process gone. The names are Prefect's."""
    release(Settings(), str(flow_run.id))


def run_plan(session: Session) -> None:
    """Every stage of the plan as a task, one after the other in this thread, so that Ctrl-C and Prefect's cancellation reach the loop
    that watches a Ray job and can stop it."""
    states: dict[str, State] = {}
    for stage in session.plan.stages:
        upstream = [states[label] for label in session.plan.upstream(stage)]
        task = run_stage.with_options(name=stage.label, task_run_name=literally(f"{stage.label} · {stage.reason}"))
        states[stage.label] = task(stage, upstream, session)


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
        "\n".join(f"- {note}" for note in notes(content)),
        "\n".join(links),
        f"Report: `dora report {content['run_id']}`",
    ]
    key = "".join(c if c.isalnum() else "-" for c in f"{content['flow']}-{content['project']}")
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
