"""`dora promote`, `dora reject` and `dora rollback`: decisions about registered models, by hand."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import Json


@app.command(epilog="Example: dora promote demo 3 --why 'approved by the safety review'")
def promote(
    model: Annotated[str, typer.Argument(help="Name of the registered model.")],
    version: Annotated[str, typer.Argument(help="Version to make the champion.")],
    why: Annotated[str, typer.Option("--why", help="Reason, kept with the version.")] = "",
    as_json: Json = False,
) -> None:
    """Make one version the champion by hand, whatever the gate said; the old champion becomes `previous`."""
    _decide("promote", model, version, why, as_json)


@app.command(epilog="Example: dora reject demo 3 --why 'answers are too long'")
def reject(
    model: Annotated[str, typer.Argument(help="Name of the registered model.")],
    version: Annotated[str, typer.Argument(help="Version that must not become the champion.")],
    why: Annotated[str, typer.Option("--why", help="Reason, kept with the version.")],
    as_json: Json = False,
) -> None:
    """Decide against a version that waits for approval; runs with the same data do not repeat the question."""
    _decide("reject", model, version, why, as_json)


@app.command(epilog="Example: dora rollback demo")
def rollback(
    model: Annotated[str, typer.Argument(help="Name of the registered model.")],
    why: Annotated[str, typer.Option("--why", help="Reason, kept with the version.")] = "",
    as_json: Json = False,
) -> None:
    """Make the previous champion the champion again."""
    _decide("rollback", model, "", why, as_json)


def _decide(action: Literal["promote", "reject", "rollback"], model: str, version: str, why: str, as_json: bool) -> None:
    with explained(as_json):
        from flows.cli.output import Out
        from infra.settings import Settings, apply_environment
        from infra.tracking import model_registry as registry

        uri = apply_environment(Settings()).mlflow_uri
        if action == "rollback":
            version = registry.rollback(uri, model, why)
        elif action == "promote":
            registry.promote(uri, model, version, why)
        else:
            registry.reject(uri, model, version, why)
        aliases, audit = registry.aliases(uri, model), registry.history(uri, model, version)[-1]
        out = Out(as_json)
        out.say(f"{model}: version {version} is {'refused' if action == 'reject' else 'champion'}")
        out.document({"model": model, "version": version, "champion": aliases.get("champion"), "aliases": aliases, "audit": audit})
