"""The declaration in `infra/prefect.yaml` against the flows it offers, and what a work pool's runs are given."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prefect import Flow
from prefect.client.schemas.schedules import CronSchedule
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate
from typer.testing import CliRunner

from dora_core.errors import ConfigError
from flows.cli import app
from flows.config.models import RealignConfig
from flows.deployment.deploy import PLACES, TAG, Deployment, base_template, declared
from flows.deployment.forms import configure, examples

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
