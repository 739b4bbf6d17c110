"""Roots of garbage collection, and what they were made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.states import Cancelled, Scheduled

from flows.config.loading import load_config
from flows.deployment import deploy
from flows.deployment.deploy import Deployment
from flows.planning.plan import build_plan
from flows.run_record import RunRecord, StageRecord, write_record
from flows.upkeep import gc, reachability
from infra.settings import Settings
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages import ingest


@pytest.mark.component
def test_what_the_last_run_of_a_queued_project_left_is_not_collected(
    api: str, client: SyncPrefectClient, entries: list[Deployment], mixture: Path, tmp_path: Path
) -> None:
    """A run that waits for a worker continues from the last run of its project; where its project is not known, all results stay."""
    settings = Settings()
    place = settings.root / "configs" / "queued.yaml"
    place.parent.mkdir(parents=True)
    place.write_text(f"project: queued\ndata: {{train: [{{path: {mixture}}}]}}\n")
    store = Store(settings.store_uri)
    plan = build_plan(load_config(place), store)
    execute(plan.stages[0].spec, ingest.run, store)
    (store.folder("align", "a" * 64).path / "result.json").write_text('{"stage": "align", "digest": "", "files": {}, "facts": {}}')
    for project, stage, digest in (("queued", "ingest", plan.stages[0].digest), ("other", "align", "a" * 64)):
        done = StageRecord(stage=stage, label=stage, digest=digest, state="ran")
        record = RunRecord(run_id=f"{project}-1", project=project, started=1.0, finished=2.0, status="failed", stages=[done])
        write_record(store, record)
    deploy.deploy(api, pool="gc")
    realign = client.read_deployment_by_name("realign/realign").id
    run = client.create_flow_run_from_deployment(realign, name="night", parameters={"config_file": "queued.yaml"}, state=Scheduled())

    def collect() -> gc.Collected:
        return gc.collect(settings, replace(settings.effective(), prefect_api_url=api), older_than=0.0)

    looked = collect()
    assert looked.kept == {f"ingest/{plan.stages[0].digest}": "night is queued"} and looked.removed == [f"align/{'a' * 64}"]
    assert looked.runs == ["other-1"], "the manifest by which the next collection knows the queued project's results stays"
    place.unlink()
    looked = collect()
    assert "night is queued, and its project is not known" in looked.notes[0]
    assert set(looked.kept.values()) == {"night is queued"} and looked.removed == looked.runs == []
    client.set_flow_run_state(run.id, Cancelled(), force=True)
    assert collect().kept == {} and collect().notes == []


def record(run_id: str, project: str, started: float, flow: str = "realign", status: str = "failed", digest: str = "a") -> RunRecord:
    stages = [StageRecord(stage="align", label="align", digest=digest * 64, state="ran")]
    content = {"run_id": run_id, "project": project, "flow": flow, "started": started, "status": status, "stages": stages}
    return RunRecord.model_validate(content | {"flow_run_id": f"flow-run-{run_id}"})


def queued(name: str, **parameters: Any) -> Any:
    return SimpleNamespace(id=f"id-{name}", name=name, parameters=parameters)


def test_a_queued_run_needs_the_last_run_of_each_kind_of_its_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    records = [
        record("p-1", "p", 1.0),
        record("p-2", "p", 2.0),
        record("p-3", "p", 3.0, flow="self-train"),
        record("study-1", "study-quick", 4.0, flow="study"),
        record("demo-1", "demo", 5.0),
    ]
    runs = reachability.Runs({run.run_id: run for run in records}, set(), {})

    def needed(flow: str, run: Any) -> tuple[set[str], list[str]]:
        found, notes = reachability.of_queue([(flow, run)], runs)
        assert set(found.values()) <= {f"{run.name} is queued"}
        return set(found), notes

    assert needed("realign", queued("a", config={"project": "p"})) == ({"p-2", "p-3"}, [])
    assert needed("realign", queued("b", config_file="demo")) == ({"demo-1"}, []), "an example's own project"
    assert needed("realign", queued("c", config_file="demo", overrides=["project=p"])) == ({"p-2", "p-3"}, [])
    assert needed("realign", queued("d")) == ({"demo-1"}, []), "the form's default"
    assert needed("study", queued("e")) == ({"study-1"}, [])
    everything, notes = needed("realign", queued("f", config_file="gone.yaml"))
    assert everything == set(runs.records) and "f is queued, and its project is not known" in notes[0] and "gone.yaml" in notes[0]
    started = SimpleNamespace(id="flow-run-p-1", name="g", parameters={"config": {"project": "p"}})
    assert needed("realign", started) == (set(), []), "it has a manifest of its own"


def test_references_are_found_wherever_a_spec_or_a_result_names_a_stage(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    names = {name: {"stage": name, "digest": name[0] * 64} for name in ("ingest", "sft", "reference")}
    store.write_json(f"align/{'a' * 64}/spec.json", {"records": names["ingest"], "nested": [{"start": names["sft"]}], "stage": "align"})
    assert reachability.references(store, f"align/{'a' * 64}") == [f"sft/{'s' * 64}", f"ingest/{'i' * 64}"]
    assert reachability.references(store, f"align/{'0' * 64}") == []


def test_the_first_root_gives_the_reason_and_inputs_are_followed_before_places_without(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_json("align/b/spec.json", {"records": {"stage": "ingest", "digest": "c"}})
    folders = {place: reachability.Folder() for place in ("align/b", "ingest/c", "sft/d")}
    roots = [
        reachability.Root("sft/d", "weights", inputs=False),
        reachability.Root("align/b", "run 1"),
        reachability.Root("ingest/c", "run 2"),
    ]
    assert reachability.reach(store, folders, roots) == {"align/b": "run 1", "ingest/c": "run 1", "sft/d": "weights"}
    assert reachability.reach(store, folders, [reachability.Root("align/gone", "run 3")]) == {}
