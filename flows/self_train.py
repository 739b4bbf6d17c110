"""The flow ``self-train``: a realignment, then rounds in which the policy learns from its own judged samples.

    realign → round 1 → round 2 → …        (stages of a round: ``flows/planning/rounds.py``)

The whole run is one plan: every stage of every round is known by digest before anything runs, so it stops and resumes as
``realign`` does. A broken guard rail ends it with its reason; earlier rounds are kept.
"""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run as this_run

from flows.config.models import SelfTrainConfig
from flows.config.run_names import name_of_rounds
from flows.run_record import EndedRun
from flows.running.naming import naming
from flows.running.supervise import clean_up_dead_run, supervise


def describe_rounds() -> str:
    return naming(name_of_rounds)(this_run.parameters["config"])


@flow(
    name="self-train",
    flow_run_name=describe_rounds,
    persist_result=False,
    on_cancellation=[clean_up_dead_run],
    on_crashed=[clean_up_dead_run],
)
def self_train(config: SelfTrainConfig) -> State[EndedRun]:
    """Realign a model, then let it learn from its own judged samples, round by round.

    Args:
        config: the whole configuration, of the realignment and of the rounds.
    """
    return supervise(config, "promote", "self-train")
