"""`dora deploy`: brings a Prefect server to the state that the package declares."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import Json


class PoolType(StrEnum):
    """Place of the flows that a worker starts: in a process beside it, in a container, or in a pod."""

    PROCESS = "process"
    DOCKER = "docker"
    KUBERNETES = "kubernetes"


@app.command(epilog="Example: dora deploy --webhook https://hooks.example.org/dora")
def deploy(
    pool: Annotated[str, typer.Option("--pool", help="Work pool of the deployments; created if there is none.")] = "dora",
    pool_type: Annotated[PoolType | None, typer.Option("--pool-type", help="Type of a new pool. Default: process.")] = None,
    image: Annotated[str | None, typer.Option("--image", help="Container image of runs (docker, kubernetes).")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Slots of dora-gpus. Default for a new limit: this machine's GPUs, or 1.")
    ] = None,
    webhook: Annotated[str | None, typer.Option("--webhook", help="Address that receives notices of failures and decisions.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change; write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Bring a Prefect server to the state of infra/prefect.yaml: work pool, deployments, schedules, limit, automations; safe to repeat."""
    with explained(as_json):
        from dora_core.errors import ServiceError
        from flows.cli.output import Out
        from flows.deployment import deploy as deployment
        from infra.settings import Settings, apply_environment

        api_url = apply_environment(Settings()).prefect_api_url
        if api_url is None:
            raise ServiceError(
                "there is no Prefect server to deploy to",
                hint="start one with `dora up`, or name one in DORA_PREFECT_API_URL",
                retryable=False,
            )
        kind: deployment.PoolType | None = pool_type.value if pool_type else None
        done = deployment.deploy(api_url, pool=pool, pool_type=kind, image=image, limit=limit, webhook=webhook, dry_run=dry_run)
        out = Out(as_json)
        rows = [(f"work pool {done.pool[0]}", done.pool[2], done.pool[1]), ("work queue upkeep", done.upkeep, "")]
        rows += [(f"limit {done.limit[0]}", done.limit[2], str(done.limit[1]))]
        rows += [(name, change, done.schedules.get(name, "")) for name, change in done.deployments.items()]
        out.table(("on " + done.server, "would be" if dry_run else "", ""), rows)
        for line in (*done.automations, *done.notes):
            out.say(line)
        out.document(done.to_json())
