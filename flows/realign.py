"""The flow ``realign``: new preference data becomes an aligned, evaluated and, if it passes the gate, promoted model.

    ingest → drift → classify → calibrate ┐
       └─────→ sft → reference ───────────┴→ align → generate → judge → compare → evaluate → promote

The plan decides what runs (``flows/planning/plan.py``), one task runs any stage (``flows/running/stage_task.py``), a session holds their
shared state (``flows/running/session.py``).
"""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run as this_run

from flows.config.models import RealignConfig
from flows.config.run_names import name_of_calibration, name_of_realignment
from flows.planning.plan import Until
from flows.run_record import EndedRun
from flows.running.naming import naming
from flows.running.supervise import clean_up_dead_run, supervise


def describe_run() -> str:
    config, until = this_run.parameters["config"], this_run.parameters["until"]
    return naming(name_of_calibration if until == "calibrate" else name_of_realignment)(config)


@flow(name="realign", flow_run_name=describe_run, persist_result=False, on_cancellation=[clean_up_dead_run], on_crashed=[clean_up_dead_run])
def realign(config: RealignConfig, until: Until = "promote") -> State[EndedRun]:
    """Realign a model on preference data.

    Args:
        config: the whole configuration.
        until: stop after this stage.
    """
    return supervise(config, until, "realign")
