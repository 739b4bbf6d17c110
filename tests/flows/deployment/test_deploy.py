"""The declaration in `infra/prefect.yaml` against the flows it offers, and what a work pool's runs are given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, GlobalConcurrencyLimitUpdate
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Pending, Running, Scheduled, Suspended
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate
from typer.testing import CliRunner

from dora_core.errors import ConfigError
from flows.cli import app
from flows.config.models import RealignConfig
from flows.deployment import automations, deploy
from flows.deployment.deploy import PLACES, TAG, Deployment, base_template, declared
from flows.deployment.forms import configure, examples
from flows.running import gpu_slots as limits
from infra.services import runs_at_a_time
from tests.flows.prefect_server import PATIENCE

ENTRIES = {entry.name: entry for entry in declared()}


def test_what_the_operators_expect_is_declared() -> None:
    assert {"realign", "realign-smoke", "realign-nightly", "self-train-weekly", "calibrate", "study", "gc", "reap"} == set(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=lambda entry: entry.name)
def test_an_entry_fits_its_flow(entry: Deployment) -> None:
    flow = entry.flow()
    assert isinstance(flow, Flow) and f"{flow.fn.__module__}.{flow.fn.__name__}" == entry.entrypoint
    validate(entry.parameters, parameter_schema(flow).model_dump(exclude_unset=True), raise_on_error=True)
    assert TAG in entry.tags, "without it the entry would not be removed with its declaration"
    for schedule in entry.schedules:
        CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
    assert len({schedule.slug for schedule in entry.schedules}) == len(entry.schedules)


def test_what_costs_hours_waits_until_it_is_switched_on() -> None:
    active = {name: [schedule.active for schedule in entry.schedules] for name, entry in ENTRIES.items() if entry.schedules}
    assert active == {"realign-nightly": [False], "self-train-weekly": [False], "gc": [False], "reap": [True]}


def test_the_smoke_run_is_the_demo_made_small(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    entry = ENTRIES["realign-smoke"]
    assert entry.parameters["config_file"] in examples()
    sections = [annotation(**entry.parameters[name]) for name, annotation in sections_of(entry).items() if name in entry.parameters]
    config = configure(RealignConfig, entry.parameters["config_file"], sections, entry.parameters["overrides"])
    assert (config.project, config.promotion.mode, config.align.optimization.max_steps) == ("smoke", "never", 20)
    assert config.needs_calibration, "it proves the whole pipeline"


def sections_of(entry: Deployment) -> dict[str, type]:
    import inspect

    parameters = inspect.signature(entry.flow().fn, eval_str=True).parameters
    return {name: parameter.annotation for name, parameter in parameters.items() if hasattr(parameter.annotation, "overrides")}


def test_a_change_of_an_entry_changes_its_digest_and_its_pool_does_not() -> None:
    entry = ENTRIES["realign-nightly"]
    moved = entry.model_copy(update={"schedules": [entry.schedules[0].model_copy(update={"cron": "0 4 * * *"})]})
    assert moved.digest != entry.digest
    assert entry.model_copy(update={"work_pool": entry.work_pool.model_copy(update={"name": "other"})}).digest == entry.digest


DOCKER = {"prefect-docker": {"docker": {"default_base_job_configuration": {"variables": {"properties": {
    name: {"type": "string"} for name in ("image", "env", "volumes", "auto_remove", "image_pull_policy")
}}}}}}  # fmt: skip


def defaults_of(template: dict[str, Any]) -> dict[str, Any]:
    return {name: variable.get("default") for name, variable in template["variables"]["properties"].items()}


def test_runs_in_containers_are_told_where_things_are_and_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DORA_STORE", "s3://bucket/dora")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    template = base_template("docker", None, lambda: DOCKER)
    assert defaults_of(template)["image"].startswith("dora-realign:")
    assert defaults_of(template)["env"] == {"DORA_HOME": "/var/lib/dora", "DORA_STORE": "s3://bucket/dora"}
    assert "canary" not in json.dumps(template)


def test_pods_run_an_image_that_the_cluster_can_pull() -> None:
    assert defaults_of(base_template("kubernetes", "registry.example.com/dora:1", dict))["image"] == "registry.example.com/dora:1"
    with pytest.raises(ConfigError, match="needs --image"):
        base_template("kubernetes", None, dict)
    with pytest.raises(ConfigError, match="without an image"):
        base_template("process", "dora-realign:1", dict)


@pytest.mark.parametrize(
    ("address", "words"),
    [(None, "there is no Prefect server to deploy to"), ("http://127.0.0.1:9/api", "Prefect at http://127.0.0.1:9/api does not answer")],
)
def test_without_a_server_deploy_says_how_to_get_one(
    address: str | None, words: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "0")
    if address:
        monkeypatch.setenv("DORA_PREFECT_API_URL", address)
    result = CliRunner().invoke(app, ["deploy"])
    assert result.exit_code == 1
    assert words in result.output and "dora up" in result.output


# ----------------------------------------------------------------------------------------- on a real Prefect API


@pytest.mark.component
def test_deploying_again_changes_nothing_that_a_person_has_changed(api: str, client: SyncPrefectClient, entries: list[Deployment]) -> None:
    looked = deploy.deploy(api, pool="people", dry_run=True)
    assert looked.pool == ("people", "process", "created")
    with pytest.raises(ObjectNotFound):
        client.read_work_pool("people")

    done = deploy.deploy(api, pool="people")
    assert done.deployments == {"realign/realign": "created", "realign/realign-nightly": "created"}
    nightly = client.read_deployment_by_name("realign/realign-nightly")
    assert (nightly.parameters, nightly.work_pool_name) == ({"config_file": "nightly.yaml"}, "people")
    (schedule,) = nightly.schedules
    assert not schedule.active

    client.update_deployment_schedule(nightly.id, schedule.id, active=True)
    client.update_global_concurrency_limit(limits.LIMIT, GlobalConcurrencyLimitUpdate(limit=5))
    again = deploy.deploy(api, pool="people")
    assert (again.pool[2], again.limit) == ("unchanged", (limits.LIMIT, 5, "unchanged"))
    assert set(again.deployments.values()) == {"unchanged"}
    assert again.schedules["realign/realign-nightly"].endswith(", on")

    own = [
        DeploymentScheduleCreate(schedule=CronSchedule(cron="0 5 * * *", timezone="UTC"), slug=slug, active=True) for slug in ("mine", None)
    ]
    client.create_deployment_schedules(nightly.id, own)
    entries[1] = entries[1].model_copy(update={"schedules": [entries[1].schedules[0].model_copy(update={"cron": "0 4 * * *"})]})
    moved = deploy.deploy(api, pool="people", limit=1)
    assert moved.notes == ["realign/realign-nightly: the schedule 'mine' is not of this release, and stays"]
    theirs = [s for s in client.read_deployment_by_name("realign/realign-nightly").schedules if s.slug != "nightly"]
    assert [(s.slug, s.active) for s in sorted(theirs, key=lambda s: s.slug or "")] == [(None, True), ("mine", True)]
    for one in theirs:
        client.delete_deployment_schedule(nightly.id, one.id)
    assert moved.deployments == {"realign/realign": "unchanged", "realign/realign-nightly": "updated"}
    assert moved.limit == (limits.LIMIT, 1, "updated")
    (schedule,) = client.read_deployment_by_name("realign/realign-nightly").schedules
    assert (schedule.schedule.cron, schedule.active) == ("0 4 * * *", True)

    del entries[1]
    assert deploy.deploy(api, pool="people").deployments == {"realign/realign": "unchanged", "realign/realign-nightly": "removed"}
    with pytest.raises(ObjectNotFound):
        client.read_deployment_by_name("realign/realign-nightly")


@pytest.mark.component
def test_the_api_refuses_a_bad_form(api: str, client: SyncPrefectClient, entries: list[Deployment]) -> None:
    deploy.deploy(api, pool="people")
    realign = client.read_deployment_by_name("realign/realign")
    with pytest.raises(PrefectHTTPStatusError, match="409") as refused:
        client.create_flow_run_from_deployment(realign.id, parameters={"training": {"learning_rate": -1}})
    assert "training.learning_rate" in refused.value.response.text
    accepted = client.create_flow_run_from_deployment(realign.id, parameters={"training": {"learning_rate": 1e-6}, "method": {}})
    assert accepted.parameters["training"] == {"learning_rate": 1e-6}


@pytest.mark.component
def test_a_pool_keeps_its_type(api: str, client: SyncPrefectClient, entries: list[Deployment]) -> None:
    made = deploy.deploy(api, pool="ships", pool_type="docker", image="dora-realign:1")
    assert made.pool == ("ships", "docker", "created")
    assert "prefect worker start --pool ships --type docker" in made.notes[0]
    template = client.read_work_pool("ships").base_job_template["variables"]["properties"]
    assert template["image"]["default"] == "dora-realign:1"
    assert deploy.deploy(api, pool="ships", image="dora-realign:2").pool == ("ships", "docker", "updated")
    with pytest.raises(ConfigError, match="of type docker, not process"):
        deploy.deploy(api, pool="ships", pool_type="process")
    with pytest.raises(ConfigError, match="without an image"):
        deploy.deploy(api, pool="fresh", image="dora-realign:2")


@pytest.mark.component
def test_prefects_own_command_accepts_the_file(api: str, client: SyncPrefectClient) -> None:
    deploy.deploy(api)  # creates the pool that the file names
    file = Path(deploy.__file__).parents[2] / "infra" / "prefect.yaml"
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("successfully created") == len(deploy.declared())


@pytest.mark.component
@pytest.mark.fault(8)
def test_upkeep_starts_while_every_other_place_is_taken(api: str, client: SyncPrefectClient) -> None:
    """A worker asks which runs it may start: as one that was here before `upkeep` does, after `dora deploy` has mended that."""
    deploy.deploy(api, pool="busy")
    reaper, realign = (client.read_deployment_by_name(name).id for name in ("reap/reap", "realign/realign"))
    client.delete_work_queue_by_id(client.read_work_queue_by_name("upkeep", "busy").id)
    client.update_deployment(reaper, DeploymentUpdate(work_pool_name="busy"))
    places = client.read_work_queue_by_name("default", "busy")
    assert places.concurrency_limit == runs_at_a_time(), "a pool that is new"
    client.update_work_queue(places.id, concurrency_limit=1)
    runs = [client.create_flow_run_from_deployment(deployment, state=Scheduled()) for deployment in (realign, realign, reaper)]

    def startable() -> set[UUID]:
        return {found.flow_run.id for found in client.get_scheduled_flow_runs_for_work_pool("busy")} & {run.id for run in runs}

    assert startable() == {runs[0].id}
    client.set_flow_run_state(runs[0].id, Pending())
    client.set_flow_run_state(runs[0].id, Running(name=limits.WAITING))
    assert startable() == set(), "it waits behind what waits for it"

    mended = deploy.deploy(api, pool="busy")
    assert (mended.upkeep, mended.deployments["reap/reap"], mended.deployments["realign/realign"]) == ("created", "updated", "unchanged")
    runs.append(client.create_flow_run_from_deployment(reaper, state=Scheduled()))
    assert startable() == {runs[3].id}
    client.set_flow_run_state(runs[0].id, Suspended())
    assert startable() == {runs[1].id, runs[3].id}, "a suspended run has no process"
    assert deploy.deploy(api, pool="busy").upkeep == "unchanged"
    assert client.read_work_queue(places.id).concurrency_limit == 1, "chosen by a person"


@pytest.mark.component
def test_automations_are_made_once_and_stay_switched_off(api: str, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    automations.install(api, "http://127.0.0.1:9/first")
    ours = [found for found in client.read_automations() if found.name.startswith(automations.PREFIX)]
    client.pause_automation(ours[0].id)
    again = automations.install(api, None)
    assert sorted(again) == sorted(f"{found.name}: unchanged" for found in ours) and len(ours) == 4
    monkeypatch.setattr(automations, "MISSED_HEARTBEATS", 4)
    assert [line.endswith(": updated") for line in automations.install(api, None)] == [False, True, False, False]
    assert [found.enabled for found in client.read_automations() if found.id == ours[0].id] == [False]


LOCAL = """
deployments:
  - name: realign-nightly
    schedules: [{slug: nightly, cron: "0 4 * * *", timezone: UTC, active: true}]
  - name: realign-products
    entrypoint: flows.deployment.form_flows.realign
    parameters: {config_file: products.yaml}
"""


def test_the_homes_own_file_is_over_the_shipped_one(tmp_path: Path) -> None:
    assert declared(tmp_path) == declared(), "there is none"
    (tmp_path / "prefect.yaml").write_text(LOCAL)
    found = {entry.name: entry for entry in declared(tmp_path)}
    nightly, products = found["realign-nightly"], found["realign-products"]
    assert nightly.schedules[0].cron == "0 4 * * *" and nightly.schedules[0].active and nightly.is_local
    assert nightly.parameters == ENTRIES["realign-nightly"].parameters, "keys that it does not have stay"
    assert products.tags == [TAG] and products.parameters == {"config_file": "products.yaml"}
    assert {name: entry for name, entry in found.items() if not entry.is_local} == {
        name: entry for name, entry in ENTRIES.items() if name != "realign-nightly"
    }
    assert ENTRIES["gc"].digest == found["gc"].digest and nightly.digest != ENTRIES["realign-nightly"].digest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("deployments: 3", "has no list of deployments with names"),
        ("deployments: [{name: realign-nightly, schedule: []}]", "schedule\n  Extra inputs"),
        ("deployments: [{name: mine, entrypoint: flows.nowhere.flow}]", "deployment mine: No module named 'flows.nowhere'"),
        ("deployments: [{name: realign, tags: []}]", "its tags lack 'dora'"),
    ],
)
def test_a_mistake_in_the_homes_own_file_names_it(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        declared(tmp_path)
    assert words in str(caught.value) and str(tmp_path / "prefect.yaml") in str(caught.value)
