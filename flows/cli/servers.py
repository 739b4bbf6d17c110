"""`dora up` and `dora down`: Prefect, MLflow, Ray and the home page on this machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import Json


@app.command(epilog="Example: dora up --postgres postgresql://dora@db.internal:5432 --artifacts s3://bucket/mlflow")
def up(
    postgres: Annotated[
        str | None,
        typer.Option(
            "--postgres",
            metavar="URL",
            help="Server for Prefect's and MLflow's data; with a password, give the URL in DORA_POSTGRES instead. none: SQLite.",
        ),
    ] = None,
    artifacts: Annotated[str | None, typer.Option("--artifacts", metavar="URI", help="MLflow's artifact root. none: a folder.")] = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="Listen there; anything but loopback needs DORA_AUTH=user:password.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Start Prefect server and worker, MLflow, a Ray head and the home page here; safe to repeat. These options are remembered."""
    with explained(as_json):
        from flows.cli.output import Out
        from flows.deployment.deploy import register
        from infra import services
        from infra.settings import Settings

        out = Out(as_json)
        given: dict[str, Any] = {"postgres": postgres, "artifacts": artifacts, "host": host}
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
        record = services.up(settings, on_progress=out.say, register=register)
        places = settings.effective()
        urls = {name: places.page(service.url) for name, service in record.services.items() if service.url}
        out.links(urls)
        out.document({"services": urls})
        out.say(f"all runs, champions and trends: {urls['home']}")
        out.say("start a run in the Prefect UI (Deployments → realign-smoke is the quickest), or: dora realign -c FILE")


@app.command(epilog="Example: dora down")
def down(as_json: Json = False) -> None:
    """Stop the services that `dora up` started, and nothing else."""
    with explained(as_json):
        from flows.cli.output import Out
        from infra import services
        from infra.settings import Settings

        out = Out(as_json)
        ended = services.down(Settings())
        out.say(f"stopped {', '.join(ended)}" if ended else "nothing was running")
        out.document({"stopped": ended})
