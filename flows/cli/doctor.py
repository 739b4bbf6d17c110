"""`dora doctor`: checks this machine."""

from __future__ import annotations

import typer

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import Json


@app.command(epilog="Example: dora doctor")
def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, memory, disk, ports, servers. Exit code 1 if something must be fixed."""
    with explained(as_json):
        from flows.cli.output import Out
        from infra.doctor import checks
        from infra.settings import Settings

        out = Out(as_json)
        found = checks(Settings())
        out.checks(found)
        out.document({"checks": [{"name": c.name, "ok": c.ok, "detail": c.detail, "hint": c.hint} for c in found]})
        if any(check.ok is False for check in found):
            raise typer.Exit(1)
