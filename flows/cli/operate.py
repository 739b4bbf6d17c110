"""`dora deploy`, `dora reap` and `dora gc`: what operators run, by hand or by schedule, to keep a place in order."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from flows.cli.errors import explained
from flows.cli.options import Json


class PoolType(StrEnum):
    """Where a worker runs flows: in a process beside it, in a container, in a pod."""

    PROCESS = "process"
    DOCKER = "docker"
    KUBERNETES = "kubernetes"


def deploy(
    pool: Annotated[str, typer.Option("--pool", help="Work pool of the deployments; created if there is none.")] = "dora",
    pool_type: Annotated[PoolType | None, typer.Option("--pool-type", help="Type of a new pool. Default: process.")] = None,
    image: Annotated[str | None, typer.Option("--image", help="Container image of runs (docker, kubernetes).")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Slots of dora-gpus. Default for a new limit: this machine's GPUs, or 1.")
    ] = None,
    webhook: Annotated[str | None, typer.Option("--webhook", help="Address that gets notices of failures and decisions.")] = None,
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
        kind = pool_type.value if pool_type else None
        done = deployment.deploy(api_url, pool=pool, pool_type=kind, image=image, limit=limit, webhook=webhook, dry_run=dry_run)
        out = Out(as_json)
        rows = [(f"work pool {done.pool[0]}", done.pool[2], done.pool[1]), ("work queue upkeep", done.upkeep, "")]
        rows += [(f"limit {done.limit[0]}", done.limit[2], str(done.limit[1]))]
        rows += [(name, change, done.schedules.get(name, "")) for name, change in done.deployments.items()]
        out.table(("on " + done.server, "would be" if dry_run else "", ""), rows)
        for line in (*done.automations, *done.notes):
            out.say(line)
        out.document(done.to_json())


def reap(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is left over; stop nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Stop what runs left behind whose process is gone: Ray jobs, MLflow runs, slots. Never touches a live run; safe to repeat."""
    with explained(as_json):
        from flows.cli.output import Out
        from flows.upkeep import reap as reaping
        from infra.settings import Settings, apply_environment

        settings = Settings()
        reaped = reaping.sweep(settings, apply_environment(settings), dry_run=dry_run)
        out = Out(as_json)
        for line in reaped.lines():
            out.say(line)
        out.document(reaped.to_json())
        if reaped.problems:
            raise typer.Exit(1)


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; without this, only say what would go.")] = False,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="Keep runs that ended and stages that were written within it: 90m, 12h, 30d.")
    ] = "7d",
    keep_runs: Annotated[
        int, typer.Option("--keep-runs", min=1, help="Keep as many completed runs of each project and kind, however old.")
    ] = 3,
    unregistered: Annotated[
        bool, typer.Option("--unregistered", help="Go on although MLflow knows none of the models that runs of this store registered.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every folder, and why it stays.")] = False,
    as_json: Json = False,
) -> None:
    """Find, or delete, what no registered model, no run under way and no next run needs of the artifact store."""
    with explained(as_json):
        from flows.cli.output import Out
        from flows.upkeep import gc as collecting
        from infra.settings import Settings, apply_environment

        out, settings, age = Out(as_json), Settings(), collecting.parse_age(older_than)
        with out.counting() as progress:
            collected = collecting.collect(
                settings,
                apply_environment(settings),
                delete=delete,
                older_than=age,
                keep_runs=keep_runs,
                unregistered=unregistered,
                progress=progress,
            )
        shown = collecting.shown
        counts = collected.stages.items()
        rows = [
            (name, str(c.folders), shown(c.bytes), str(c.removed or ""), shown(c.removed_bytes) if c.removed else "") for name, c in counts
        ]
        out.table(("in the store", "folders", "size", "gone" if delete else "would go", ""), rows)
        out.table(("kept for", "folders", "size"), [(why, str(n), shown(size)) for why, (n, size) in collected.reasons().items()])
        if verbose:
            listed = [(place, why) for place, why in collected.kept.items()] + [(place, "") for place in collected.removed]
            out.table(("folder", "kept for"), sorted(listed))
        for line in (*collected.notes, *collected.problems, collected.summary()):
            out.say(line)
        out.document(collected.to_json())
        if collected.problems:
            raise typer.Exit(1)
