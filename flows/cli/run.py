"""Plan, run, watch, summarise: what ``dora realign``, ``demo``, ``calibrate``, ``align`` and ``evaluate`` share."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

from flows.cli.output import Out
from flows.config import RealignConfig
from flows.plan import Until, build_plan
from infra.settings import Settings, apply_environment
from infra.store import Store, write_atomic


def dry_run(config: RealignConfig, until: Until, *, as_json: bool) -> None:
    """Print the plan; nothing runs and nothing is written."""
    plan = build_plan(config, Store(Settings().store_uri), until=until)
    out = Out(as_json)
    out.plan(plan)
    out.document(plan.to_json())


def run(config: RealignConfig, until: Until, *, as_json: bool, verbose: bool, report: Path | None = None) -> None:
    """Run the flow in this process and print its summary.

    Raises:
        DoraError: what made a stage fail. KeyboardInterrupt: stopped; Ray jobs and servers of this command have ended.
    """
    settings = Settings()
    places = apply_environment(settings)
    if not verbose:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    out = Out(as_json)

    from flows.prefect_api import own_prefect_api

    api = nullcontext(lambda: None) if places.prefect_api_url else own_prefect_api(settings)
    with api as wait_for_api, out.watching(verbose) as observer:
        from flows.realign import realign  # imports Prefect while its API boots
        from flows.session import COMMAND, Command

        wait_for_api()
        token = COMMAND.set(Command(places, observer))
        try:
            manifest = realign(config, until, return_state=True).result()
        finally:
            COMMAND.reset(token)

    store = Store(settings.store_uri)
    path = write_report(store, manifest["run_id"], report or settings.root / "reports" / f"{manifest['run_id']}.html")
    links = {"report": str(path)} | {name: link for name, link in manifest["links"].items() if link}
    if manifest["links"]["mlflow"].startswith("sqlite"):
        links["mlflow"] = f"mlflow ui --backend-store-uri {manifest['links']['mlflow']}  (or `dora up`)"
    out.summary(manifest, store, links)
    out.document({**manifest, "links": links})


def write_report(store: Store, run_id: str, path: Path) -> Path:
    from infra.report.page import render

    write_atomic(path, render(store, run_id))
    return path.resolve()
