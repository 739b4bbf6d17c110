"""``STAGES``: every stage, by name, in the order of the pipeline.

**A new stage** is a file here that ends with its descriptor, a line in :data:`STAGES`, and the method of
``flows/planning/specs.py:Chain`` that gives it its place in a run.
"""

from __future__ import annotations

from typing import Any

from infra.store.json_files import StoredResult
from tasks.runtime.descriptor import STAGES, StageResult
from tasks.stages import (
    align,
    batch,
    benchmarks,
    calibrate,
    classify,
    compare,
    drift,
    evaluate,
    exact_densities,
    finals,
    generate,
    guard,
    ingest,
    judge,
    mix,
    promote,
    prompts,
    race,
    reference,
    replay,
    reward,
    sft,
    study,
    suggest,
    training_data,
    trial,
    tune,
    value,
)

__all__ = ["STAGES", "parse_result"]

STAGES.update(
    (stage.name, stage)
    for stage in (
        ingest.STAGE,
        drift.STAGE,
        replay.STAGE,
        classify.STAGE,
        calibrate.STAGE,
        exact_densities.STAGE,
        value.STAGE,
        race.STAGE,
        sft.STAGE,
        reference.STAGE,
        reward.STAGE,
        training_data.STAGE,
        trial.STAGE,
        tune.STAGE,
        finals.STAGE,
        align.STAGE,
        generate.STAGE,
        judge.STAGE,
        mix.STAGE,
        guard.STAGE,
        compare.STAGE,
        benchmarks.STAGE,
        evaluate.STAGE,
        promote.STAGE,
        batch.STAGE,
        study.STAGE,
        suggest.STAGE,
        prompts.STAGE,
    )
)


def parse_result(content: StoredResult) -> StageResult[Any]:
    """Parse the content of any stage's ``result.json``, with the facts model of that stage."""
    return STAGES[content["stage"]].parse(content)
