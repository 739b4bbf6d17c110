"""Plans, runs, watches and summarises: shared by the commands that run a flow."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dora_core.environment import set_default
from dora_core.errors import RunStopped
from flows.cli.output import Out, search_document
from flows.config.loading import load_config
from flows.config.models import RealignConfig, SelfTrainConfig, StudyConfig
from flows.config.search_space import SearchConfig
from flows.planning.plan import Until, build_plan
from flows.run_record import EndedRun
from infra.settings import Places, Settings, apply_environment
from infra.store.store import Store, write_atomic

if TYPE_CHECKING:
    from dora_core.data.previewed import Preview

DRY_ROWS = 2_000
"""Rows of each input that `--dry-run` reads; `dora data preview` reads more."""


def run_file(
    path: Path,
    overrides: list[str],
    until: Until,
    dry_run: bool,
    as_json: bool,
    verbose: bool,
    model: type[RealignConfig] = RealignConfig,
) -> None:
    """Load a configuration file, and run it or show its plan."""
    run_or_show(load_config(path, overrides, model), until, dry_run, as_json, verbose)


def run_or_show(config: RealignConfig, until: Until, dry_run: bool, as_json: bool, verbose: bool, report: Path | None = None) -> None:
    if dry_run:
        show_plan(config, until, as_json=as_json)
    else:
        run(config, until, as_json=as_json, verbose=verbose, report=report)


def show_plan(config: RealignConfig, until: Until, *, as_json: bool) -> None:
    """Print the plan; nothing runs and nothing is written."""
    settings = Settings()
    store, places = Store(settings.store_uri), apply_environment(settings)
    plan = build_plan(config, store, until=until, mlflow_uri=places.mlflow_uri)
    out = Out(as_json)
    preview = _print_data(config, out)
    for line in plan.model:
        out.say(f"policy: {line}")
    for note in plan.notes:
        out.say(f"note: {note}")
    out.plan(plan)
    out.document(plan.to_json() | {"data": preview.model_dump(exclude={"inputs": {"__all__": {"shown"}}})})


def _print_data(config: RealignConfig, out: Out) -> Preview:
    """Print one line per input and the warnings, from the first rows of each; texts are never among them."""
    from dora_core.data.preview import preview_data
    from flows.report.data_preview import input_line

    preview, _, _ = preview_data(config.data, config.wanted, rows=DRY_ROWS, shown=0, suspect=False)
    for item in preview.inputs:
        out.say(input_line(item))
    for text in preview.refusals:
        out.say(f"a run would refuse the data: {text}")
    for text in preview.warnings:
        if "only its first" not in text:  # the lines above say how many rows were read
            out.say(f"note: {text}")
    return preview


def dry_study(config: StudyConfig, *, as_json: bool) -> None:
    """Print the plan of a study; nothing runs, and only its generated data is written."""
    from flows.planning.study_grid import build_grid, plan_study

    settings = Settings()
    grid = build_grid(config, settings.root / "study")
    plan = plan_study(config, grid, Store(settings.store_uri))
    counts = {"cells": grid.cells, "seeds": len(grid.stages), "stages_of_all_seeds": sum(map(len, grid.stages.values()))}
    out = Out(as_json)
    out.plan(plan)
    out.say(f"{grid.cells} cells, {counts['seeds']} seeds: {counts['stages_of_all_seeds']} stages in all, shared ones counted once")
    out.document(plan.to_json() | counts)


def run(
    config: RealignConfig | StudyConfig,
    until: Until = "promote",
    *,
    as_json: bool,
    verbose: bool,
    report: Path | None = None,
    search: SearchConfig | None = None,
) -> None:
    """Run the flow of a configuration in this process; print its summary and write its report.

    Args:
        search: run this search over the configuration instead of a realignment.

    Raises:
        DoraError: the failure of a stage. RunStopped: a guard rail; summary and report are there.
            KeyboardInterrupt: stopped; Ray jobs and servers of this command have ended.
    """
    settings = Settings()
    places = apply_environment(settings)
    if not verbose:
        set_default("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    out = Out(as_json)
    if not isinstance(config, StudyConfig) and (ended := _unchanged(config, until, settings, places, out, verbose)) is not None:
        _finish(ended, settings, out, report)
        return

    from infra.prefect_api import check_answers, own_prefect_api

    api = nullcontext(partial(check_answers, url)) if (url := places.prefect_api_url) else own_prefect_api(settings)
    with api as wait_for_api, out.watching(verbose) as observer:
        import flows.running.stage_task  # noqa: F401  # imports Prefect while its API boots
        from flows.running.observer import COMMAND, Command
        from flows.upkeep.reap import end_dead

        wait_for_api()
        # Without a server there is no flow `reap`: the next command cleans up after a killed one. A bucket's manifests take long to read.
        if places.prefect_api_url is None and Store(settings.store_uri).remote is None:
            end_dead(settings)
        token = COMMAND.set(Command(places, observer, _line()))
        stopped: RunStopped | None = None
        try:
            ended = _run_flow(config, until, search)
        except RunStopped as error:
            stopped, ended = error, error.run
        finally:
            COMMAND.reset(token)

    _finish(ended, settings, out, report, stopped)


def _unchanged(config: RealignConfig, until: Until, settings: Settings, places: Places, out: Out, verbose: bool) -> EndedRun | None:
    """Record a run with nothing to do, without Prefect; None if there is anything to do."""
    from flows.running.surroundings import Surroundings
    from flows.running.unchanged import unchanged

    flow = "self-train" if isinstance(config, SelfTrainConfig) else "realign"
    with out.watching(verbose) as observer:
        here = Surroundings(settings, places, Store(settings.store_uri), observer, on_server=False, command=_line())
        return unchanged(config, until, here, flow)


def _line() -> str:
    """Return the command as it was typed."""
    return shlex.join(["dora", *sys.argv[1:]])


def _finish(ended: EndedRun, settings: Settings, out: Out, report: Path | None, stopped: RunStopped | None = None) -> None:
    """Print the summary of a run, and write its report.

    Raises:
        RunStopped: ``stopped``, after summary and report.
    """
    store = Store(settings.store_uri)
    run_id, pages = ended.record.run_id, ended.record.links
    if ended.record.ran or stopped is not None:
        written = str(write_report(store, run_id, report or settings.root / "reports" / f"{run_id}.html"))
    else:  # drawing takes longer than everything else of a run without work
        written = str(report) if report is not None and report.is_file() else f"dora report {run_id}"
    links = {"report": written} | {name: link for name, link in pages if link}
    if pages.mlflow and pages.mlflow.startswith("sqlite"):
        links["mlflow"] = f"mlflow ui --backend-store-uri {shlex.quote(pages.mlflow)}  (or `dora up`)"
    out.summary(ended, store, links)
    if stopped is not None:
        raise stopped
    out.document(ended.to_json() | {"links": links} | search_document(ended, store))


def _run_flow(config: RealignConfig | StudyConfig, until: Until, search: SearchConfig | None) -> EndedRun:
    """Run ``tune`` for a search, else ``study``, ``self-train`` or ``realign``, by the model of the configuration.

    Raises:
        DoraError: the cause of its failure.
    """
    state: Any
    if search is not None:
        from flows.tune import tune

        state = tune(config, search, return_state=True)
    elif isinstance(config, StudyConfig):
        from flows.study import study

        state = study(config, return_state=True)
    elif isinstance(config, SelfTrainConfig):
        from flows.self_train import self_train

        state = self_train(config, return_state=True)
    else:
        from flows.realign import realign

        state = realign(config, until, return_state=True)
    ended: EndedRun = state.result()
    return ended


def write_report(store: Store, run_id: str, path: Path, prompts: int | None = None) -> Path:
    """Write the page of a run; a study and a search have different pages.

    Args:
        prompts: held-out prompts shown with their responses; None: as the run's configuration says.
    """
    from flows.report.render import page_of

    write_atomic(path, page_of(store, run_id, prompts))
    return path.resolve()
