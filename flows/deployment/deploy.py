"""``dora deploy``: brings a Prefect server to the state that ``infra/prefect.yaml`` declares, with the changes and additions of
``<home>/prefect.yaml``: schedules and deployments of this machine, which an upgrade leaves alone. Safe to repeat.

Work pool and its queues, deployments with their forms and schedules, the concurrency limit of ``flows/running/gpu_slots.py`` and the
automations of ``flows/deployment/automations.py``. The worker imports a flow from the installed package: nothing is uploaded, and the code
that runs is the code that is installed there.

Changes made in Prefect's UI stay: the sizes of limits unless one is given, whether a schedule is on, schedules that the files do not
declare (with a slug or without), and parameters and times of a deployment until its entry in the file changes (in the home's file a
schedule's ``active`` counts, too). The server remembers the digest of the entry it was given, as the deployment's version. A deployment
tagged ``dora`` that the files no longer declare is removed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import importlib.util
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from dora_core.environment import variable
from dora_core.errors import ConfigError
from dora_core.strict_model import NAME_PATTERN, StrictModel
from flows.config.yaml_text import read_yaml
from flows.deployment import automations
from flows.deployment.automations import TAG, UPKEEP
from infra.prefect_api import connected
from infra.settings import WORK_POOL, Settings
from infra.store.store import sha256_of

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

PoolType = Literal["process", "docker", "kubernetes"]
Change = Literal["created", "updated", "unchanged", "removed"]

FORMER_SLUGS: frozenset[str] = frozenset()
"""Slugs of schedules that a release has declared and this one does not: they are removed. A schedule with any other slug is the user's."""
LOCAL_FILE = "prefect.yaml"
"""The home's own declarations."""
DEFAULT = "default"
"""Queue that Prefect makes with a pool."""
UPKEEP_AT_A_TIME = 2
UPKEEP_ABOUT = "Maintenance queue (reap, gc); never blocked by training runs."
"""Description by which a queue of that name is recognised as made here."""
UPKEEP_BEFORE = "What frees what runs wait for: it does not wait behind them."
"""Description that earlier releases gave it."""

PACKAGES = {"docker": "prefect-docker", "kubernetes": "prefect-kubernetes"}
CONTAINER_HOME = "/var/lib/dora"
PLACES = ("DORA_STORE", "DORA_MLFLOW_URI", "DORA_RAY_ADDRESS", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
"""Variables of this environment that a container needs; passwords belong in the worker's own environment."""


# --------------------------------------------------------------------------------------------------------- the file


class Schedule(StrictModel):
    """Time at which a deployment starts without a request."""

    slug: str = Field(pattern=NAME_PATTERN, description="Name of the schedule within its deployment.")
    cron: str = Field(description="Minute, hour, day of month, month, day of week.")
    timezone: str = Field(description="IANA name, e.g. Europe/Berlin.")
    active: bool = Field(description="false: until it is switched on in Prefect's UI.")


class WorkPool(StrictModel):
    name: str = Field(description="For `prefect deploy`; `dora deploy` takes the pool from --pool.")
    work_queue_name: Literal["default", "upkeep"] = "default"


class Deployment(StrictModel):
    """One entry of the file; the keys are those of Prefect's own ``prefect.yaml``."""

    name: str = Field(pattern=NAME_PATTERN)
    entrypoint: str = Field(description="Module path of a flow.")
    description: str
    tags: list[str]
    work_pool: WorkPool
    parameters: dict[str, Any] = Field(default_factory=dict, description="Prefill the form, and are what a schedule runs with.")
    schedules: list[Schedule] = Field(default_factory=list)
    is_local: bool = Field(False, description="Not a key of the file: whether the home's own file has an entry of this name.")

    @property
    def digest(self) -> str:
        return sha256_of(self.model_dump(exclude={"work_pool", "is_local"}))[:12]

    def flow(self) -> Flow[..., Any]:
        module, _, name = self.entrypoint.rpartition(".")
        flow: Flow[..., Any] = getattr(importlib.import_module(module), name)
        return flow


def declared(home: Path | None = None) -> list[Deployment]:
    """Return the deployments of ``infra/prefect.yaml``, and those of ``<home>/prefect.yaml`` over them.

    An entry of the home's file with a shipped name replaces the keys that it has; one with another name is a further deployment.

    Raises:
        ConfigError: a file was edited into something it may not be.
    """
    shipped = "infra/prefect.yaml"
    content, _ = read_yaml((importlib.resources.files("infra") / "prefect.yaml").read_text(encoding="utf-8"), shipped)
    entries: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in content["deployments"]}
    sources = dict.fromkeys(entries, shipped)
    own = home / LOCAL_FILE if home is not None else None
    if own is not None and own.is_file():
        for entry in _local_entries(own):
            name = entry["name"]
            base = entries.get(
                name, {"tags": [TAG], "work_pool": {"name": WORK_POOL}, "description": "Of this machine's own prefect.yaml."}
            )
            entries[name], sources[name] = base | entry | {"is_local": True}, str(own)
    try:
        found = []
        for name, entry in entries.items():  # noqa: B007  # the name is for the error
            found.append(Deployment.model_validate(entry))
            found[-1].flow()
    except (ValidationError, ImportError, AttributeError) as error:
        hint = "compare it with the file of the release" if sources[name] == shipped else f"the keys are those of {shipped}"
        raise ConfigError(f"{sources[name]}, deployment {name}: {error}", hint=hint) from None
    for deployment in found:
        if TAG not in deployment.tags:
            raise ConfigError(f"{sources[deployment.name]}, deployment {deployment.name}: its tags lack {TAG!r}", hint=f"tags: [{TAG}]")
    return found


def _local_entries(path: Path) -> list[dict[str, Any]]:
    content, _ = read_yaml(path.read_text(encoding="utf-8"), str(path))
    entries = content.get("deployments") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in entries):
        raise ConfigError(f"{path} has no list of deployments with names", hint="deployments: [{name: realign-nightly, schedules: […]}]")
    return entries


# --------------------------------------------------------------------------------------------------------- the server


@dataclass
class Deployed:
    """Changes that were made, or would be (``--dry-run``)."""

    server: str
    pool: tuple[str, str, Change]
    upkeep: Change
    limit: tuple[str, int, Change] = ("", 0, "unchanged")
    deployments: dict[str, Change] = field(default_factory=dict)
    schedules: dict[str, str] = field(default_factory=dict)
    automations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        name, kind, change = self.pool
        limit, size, limit_change = self.limit
        return {
            "server": self.server,
            "work_pool": {"name": name, "type": kind, "change": change},
            "work_queue": {"name": UPKEEP, "change": self.upkeep},
            "concurrency_limit": {"name": limit, "limit": size, "change": limit_change},
            "deployments": self.deployments,
            "schedules": self.schedules,
            "automations": self.automations,
            "notes": self.notes,
        }


def register(api_url: str, pool: str) -> None:
    """Callback of ``dora up`` when its server and worker are up."""
    deploy(api_url, pool=pool)


def deploy(
    api_url: str,
    *,
    pool: str = WORK_POOL,
    pool_type: PoolType | None = None,
    image: str | None = None,
    limit: int | None = None,
    webhook: str | None = None,
    dry_run: bool = False,
) -> Deployed:
    """Create or update everything that ``infra/prefect.yaml`` declares; see the module docstring.

    Args:
        api_url: ``http://host:4200/api``.
        pool: work pool of all deployments; created if there is none of that name.
        pool_type: of a new pool; None: process. For a pool that is there: what it must be.
        image: container image of runs, for docker and kubernetes. Default: the one this release builds.
        limit: slots of ``dora-gpus``. Default for a new limit: the number of GPUs of this machine, or 1.
        webhook: address for notices of failures and decisions; None: unchanged.
        dry_run: report; write nothing.

    Raises:
        ServiceError: the server is away or refuses the credentials. ConfigError: the pool is of another type, or needs no image.
    """
    entries = declared(Settings().root)
    with connected(api_url) as client:
        ensured = _ensure_pool(client, pool, pool_type, image, dry_run)
        result = Deployed(api_url, ensured, _ensure_upkeep(client, *ensured[:2], dry_run))
        result.notes += _worker_notes(*result.pool[:2])
        result.limit = _ensure_limit(client, limit, dry_run)
        known = _ours(client)
        for entry in entries:
            flow = entry.flow()
            label = f"{flow.name}/{entry.name}"
            found = known.pop(label, None)
            result.deployments[label] = _ensure_deployment(client, entry, flow, found, pool, dry_run)
            for schedule in entry.schedules:
                there = next((s for s in found.schedules if s.slug == schedule.slug), None) if found else None
                changed = found is not None and found.version != entry.digest and entry.is_local
                on = schedule.active if there is None or changed else there.active
                result.schedules[label] = f"{schedule.cron} {schedule.timezone}, {'on' if on else 'off'}"
            own = {schedule.slug for schedule in entry.schedules} | FORMER_SLUGS
            kept = [s.slug for s in found.schedules if s.slug and s.slug not in own] if found else []
            result.notes += [f"{label}: the schedule {slug!r} is not of this release, and stays" for slug in kept]
        for label, gone in known.items():
            result.deployments[label] = "removed"
            if not dry_run:
                client.delete_deployment(gone.id)
        if not dry_run:
            result.automations = automations.install(api_url, webhook)
    return result


def _ours(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """``{"flow/deployment": …}`` of those with our tag."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags

    found = client.read_deployments(deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])))
    return {f"{client.read_flow(deployment.flow_id).name}/{deployment.name}": deployment for deployment in found}


def _ensure_deployment(
    client: SyncPrefectClient, entry: Deployment, flow: Flow[..., Any], found: DeploymentResponse | None, pool: str, dry_run: bool
) -> Change:
    """Create the deployment, or update it as far as the module docstring allows."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.utilities.callables import parameter_schema

    facts: dict[str, Any] = {
        "version": entry.digest,
        "description": entry.description,
        "tags": entry.tags,
        "entrypoint": entry.entrypoint,
        "work_pool_name": pool,
        "work_queue_name": entry.work_pool.work_queue_name,
        "parameter_openapi_schema": parameter_schema(flow).model_dump(exclude_unset=True),
        "enforce_parameter_schema": True,
    }
    times = {schedule.slug: CronSchedule(cron=schedule.cron, timezone=schedule.timezone) for schedule in entry.schedules}
    new = {s.slug: DeploymentScheduleCreate(schedule=times[s.slug], active=s.active, slug=s.slug) for s in entry.schedules}
    if found is None:
        if not dry_run:
            flow_id = client.create_flow_from_name(flow.name)
            client.create_deployment(flow_id, entry.name, parameters=entry.parameters, schedules=list(new.values()), pull_steps=[], **facts)
        return "created"
    if all(getattr(found, name) == value for name, value in facts.items()):
        return "unchanged"
    if dry_run:
        return "updated"
    if found.version == entry.digest:
        client.update_deployment(found.id, DeploymentUpdate(**facts))
        return "updated"
    client.update_deployment(found.id, DeploymentUpdate(**facts, parameters=entry.parameters))
    for schedule in found.schedules:  # all others are the user's own, with a slug or without
        if schedule.slug in times:
            active = new[schedule.slug].active if entry.is_local else None
            client.update_deployment_schedule(found.id, schedule.id, active=active, schedule=times[schedule.slug])
        elif schedule.slug in FORMER_SLUGS:
            client.delete_deployment_schedule(found.id, schedule.id)
    missing = [create for slug, create in new.items() if slug not in {schedule.slug for schedule in found.schedules}]
    if missing:
        client.create_deployment_schedules(found.id, missing)
    return "updated"


def _ensure_limit(client: SyncPrefectClient, limit: int | None, dry_run: bool) -> tuple[str, int, Change]:
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
    from prefect.exceptions import ObjectNotFound

    from flows.running.gpu_slots import LIMIT

    try:
        there = client.read_global_concurrency_limit_by_name(LIMIT).limit
    except ObjectNotFound:
        size = limit or _gpus()
        if not dry_run:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=size))
        return LIMIT, size, "created"
    if limit is None or limit == there:
        return LIMIT, there, "unchanged"
    if not dry_run:
        client.update_global_concurrency_limit(LIMIT, GlobalConcurrencyLimitUpdate(limit=limit))
    return LIMIT, limit, "updated"


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() or 1


# --------------------------------------------------------------------------------------------------------- work pools


def _ensure_pool(client: SyncPrefectClient, name: str, kind: PoolType | None, image: str | None, dry_run: bool) -> tuple[str, str, Change]:
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        kind = kind or "process"
        template = base_template(kind, image, client.read_worker_metadata)
        if not dry_run:
            client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template))
        return name, kind, "created"
    if kind is not None and pool.type != kind:
        raise ConfigError(
            f"the work pool {name!r} is there, and of type {pool.type}, not {kind}",
            hint=f"choose another --pool, or leave --pool-type out; `prefect work-pool delete {name}` removes it with its queues",
        )
    if pool.type == "process":
        _refuse_image(image)
    template = json.loads(json.dumps(pool.base_job_template))
    variables = template["variables"]["properties"]
    if image is None or variables["image"].get("default") == image:
        return name, pool.type, "unchanged"
    variables["image"]["default"] = image
    if not dry_run:
        client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
    return name, pool.type, "updated"


def _ensure_upkeep(client: SyncPrefectClient, pool: str, kind: str, dry_run: bool) -> Change:
    """Ensure the maintenance queue, so that maintenance is never blocked by training runs.

    In a process pool, where each run is a process of the worker's machine, both queues get a limit; containers and pods have their own
    schedulers. The server counts the pending and the running runs of a queue, and gives a worker no more than are left: a worker's own
    ``--limit`` would hold upkeep back, too.
    """
    from prefect.exceptions import ObjectNotFound

    from infra.services import runs_at_a_time

    found = None
    with suppress(ObjectNotFound):
        found = client.read_work_queue_by_name(UPKEEP, pool)
        if found.description in (UPKEEP_ABOUT, UPKEEP_BEFORE):
            return "unchanged"
    change: Change = "updated" if found else "created"
    if dry_run:
        return change
    bounded = kind == "process"
    ordinary = client.read_work_queue_by_name(DEFAULT, pool)
    if bounded and ordinary.concurrency_limit is None:
        client.update_work_queue(ordinary.id, concurrency_limit=runs_at_a_time())
    facts: dict[str, Any] = {"priority": 1, "concurrency_limit": UPKEEP_AT_A_TIME if bounded else None, "description": UPKEEP_ABOUT}
    if found is None:
        client.create_work_queue(UPKEEP, work_pool_name=pool, **facts)
    else:
        client.update_work_queue(found.id, **facts)
    return change


def base_template(kind: PoolType, image: str | None, prefects_own: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the base job template of a new pool.

    Args:
        prefects_own: returns the server's templates, so that a worker's package is needed on its machine only.

    Raises:
        ConfigError: an image for a process, or none for a cluster that has to pull one.
    """
    template: dict[str, Any]
    if kind == "process":
        from prefect.workers.process import ProcessWorker

        _refuse_image(image)
        return ProcessWorker.get_default_base_job_template()
    if kind == "kubernetes":
        if image is None:
            raise ConfigError(
                "a kubernetes work pool needs --image: one that the cluster can pull", hint="build and push infra/docker/Dockerfile"
            )
        template = json.loads((importlib.resources.files("infra") / "kubernetes" / "prefect-work-pool.json").read_text(encoding="utf-8"))
        template["variables"]["properties"]["image"]["default"] = image
        return template
    template = prefects_own()["prefect-docker"]["docker"]["default_base_job_configuration"]
    places = {name: value for name in PLACES if (value := variable(name))}
    defaults = {
        "image": image or f"dora-realign:{importlib.metadata.version('dora-realign')}-cpu",  # as infra/docker/Dockerfile names it
        "env": {"DORA_HOME": CONTAINER_HOME} | places,
        "volumes": [f"dora-home:{CONTAINER_HOME}"],
        "auto_remove": True,
        "image_pull_policy": "IfNotPresent",
    }
    for name, default in defaults.items():
        template["variables"]["properties"][name]["default"] = default
    return template


def _refuse_image(image: str | None) -> None:
    if image is not None:
        raise ConfigError("--image: runs of a process pool are processes, without an image", hint="add --pool-type docker or kubernetes")


def _worker_notes(pool: str, kind: str) -> list[str]:
    """Return the steps that are still to be done by hand for runs to start."""
    if kind == "process":
        return []
    package = PACKAGES[kind]
    install = "" if importlib.util.find_spec(package.replace("-", "_")) else f"pip install {package}; "
    notes = [f"on the worker's machine: {install}prefect worker start --pool {pool} --type {kind}"]
    away = [name for name in PLACES[:3] if variable(name) is None]
    if kind == "docker" and away:
        unset = f"{', '.join(away)} {'is' if len(away) == 1 else 'are'} not set here"
        notes.append(f"{unset}: each container would use a separate store and history; set them, and deploy into a new --pool")
    return notes
