"""A command whose every stage is cached, on a machine without servers: recorded without Prefect, MLflow or Ray, in a few seconds.

A run on a server is a flow run all the same, with a state and a page; there only tasks and MLflow runs are left out
(``flows/running/supervise.py``).
"""

from __future__ import annotations

from datetime import date

from flows.config.models import RealignConfig, SelfTrainConfig
from flows.config.run_names import name_of_calibration, name_of_realignment, name_of_rounds
from flows.planning.latest import last_run, read_latest, write_latest
from flows.planning.plan import Until, build_plan
from flows.planning.run_names import run_name
from flows.run_record import EndedRun, read_records
from flows.running.manifest import FlowRun, Manifest
from flows.running.surroundings import Surroundings
from infra.store.store import Store


def unchanged(config: RealignConfig, until: Until, here: Surroundings, flow: str) -> EndedRun | None:
    """Record the run if there is nothing to do; None if anything is to run, or to be cleaned up after.

    Raises:
        DataError, ConfigError: see :func:`flows.planning.plan.build_plan`.
    """
    is_served = here.places.prefect_api_url is not None or here.places.ray_dashboard is not None
    if is_served or not read_latest(here.store, config.project):  # a project's first run computes something
        return None
    unsent = here.settings.outbox.is_dir() and any(here.settings.outbox.iterdir())
    if unsent or any(run.status == "running" for run in read_records(here.store)):  # of a run that was killed, or that is at work
        return None
    plan = build_plan(config, here.store, until=until, mlflow_uri=here.places.mlflow_uri).checked(here.store)
    if plan.to_run:
        return None
    flow_run = FlowRun(flow, "", _name(config, until, here.store), command=here.command)
    manifest = Manifest.open(here.store, plan, config, flow_run, here.places)
    here.observer.planned(manifest.run_id, plan)
    manifest.record_cached(plan, here.observer.finished, last_run(here.store, plan))
    write_latest(here.store, plan, manifest.run_id)
    manifest.update(status="completed", finished=manifest.now())
    return EndedRun(manifest.run, list(plan.notes))


def _name(config: RealignConfig, until: Until, store: Store) -> str:
    if isinstance(config, SelfTrainConfig):
        plain = name_of_rounds(config)
    else:
        plain = (name_of_calibration if until == "calibrate" else name_of_realignment)(config)
    return run_name(store, config, plain, None, date.today())
