"""``projects/<project>/latest.json``: the stages of a project's last successful run, the baseline of the next plan."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from dora_core.strict_model import StrictModel
from flows.planning.planned_stage import Plan
from infra.store.json_files import parsed
from infra.store.store import Store
from tasks.runtime.spec import StageRef


class LatestStage(StrictModel):
    """One stage of the last successful run that had it.

    Attributes:
        payload: of its spec, see :meth:`tasks.runtime.spec.StageSpec.payload`.
        run_id: the run that computed it or found it cached.
    """

    model_config = ConfigDict(extra="ignore")

    digest: str
    payload: dict[str, Any]
    run_id: str

    @property
    def ref(self) -> StageRef:
        return StageRef(stage=self.payload["stage"], digest=self.digest)


def read_latest(store: Store, project: str) -> dict[str, LatestStage]:
    """Return the project's stages by label; empty for a new project."""
    content = store.read_json(_file(project)) or {}
    return {label: parsed(LatestStage, entry, f"{store.uri}/{_file(project)}") for label, entry in content.get("plan", {}).items()}


def last_run(store: Store, plan: Plan) -> str | None:
    """Return the id of the project's last successful run that had the plan's last stage; None without one."""
    latest = read_latest(store, plan.project).get(plan.stages[-1].label)
    return latest.run_id if latest else None


def write_latest(store: Store, plan: Plan, run_id: str) -> None:
    """Record a finished plan; stages that it did not reach keep their entry."""
    done = {s.label: LatestStage(digest=s.digest, payload=s.spec.payload(), run_id=run_id) for s in plan.stages}
    entries = {label: entry.model_dump(mode="json") for label, entry in (read_latest(store, plan.project) | done).items()}
    store.write_json(_file(plan.project), {"run_id": run_id, "plan": entries})


def _file(project: str) -> str:
    return f"projects/{project}/latest.json"
