"""Stage ``align``: a preference loss under a robust objective, on Ray Train.

Input: records, calibration factors (where the objective uses them), reference log-probabilities, a starting model. Output:
``model/``. Guarantee: every optimisation step is the exact objective over its whole global batch, however it is spread over
workers and micro-batches; a killed worker resumes from the last checkpoint and ends with the same weights.
Cost: forward and backward over all responses, per epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from dora_core.config import AlignConfig, ModelConfig, TextConfig
from tasks.stage import StageContext, StageOutput, StageRef, StageSpec, main

if TYPE_CHECKING:
    from pathlib import Path

    from dora_core.alignment import AlignmentTask
    from dora_core.config import Execution
    from dora_core.distributed import Worker
    from tasks.trainer import Policy

HEAVIEST_SHOWN = 10


class Spec(StageSpec):
    """See the module docstring."""

    stage: ClassVar[str] = "align"

    records: StageRef
    calibration: StageRef | None
    reference: StageRef
    start: StageRef | None
    model: ModelConfig
    text: TextConfig
    align: AlignConfig
    aggregate: str = "mean"
    plugins: list[str] = Field(default_factory=list)
    """sha256 of the files that define a loss or objective of the user's (:func:`plugin_digests`): edited code is another run."""


def plugin_digests(align: AlignConfig) -> list[str]:
    """For :attr:`Spec.plugins`; empty where loss and objective are ours."""
    from dora_core.objectives import find_objective
    from dora_core.plugins import code_digest

    digests = (code_digest(align.loss), code_digest(find_objective(align.objective.name)))
    return [digest for digest in digests if digest is not None]


def run(spec: Spec, context: StageContext) -> StageOutput:
    from tasks.trainer import TrainingJob, facts, launch, starting_model

    calibration = None if spec.calibration is None else str(context.fetch(spec.calibration))
    job = TrainingJob(
        build=build_task,
        arguments={
            "records": str(context.fetch(spec.records)),
            "calibration": calibration,
            "reference": str(context.fetch(spec.reference)),
            "align": spec.align,
            "text": spec.text,
            "aggregate": spec.aggregate,
            "execution": spec.execution,
        },
        model=starting_model(context, spec.start, spec.model),
        optimization=spec.align.optimization,
        execution=spec.execution,
        store_uri=context.store.uri,
        stage=spec.stage,
        digest=spec.digest(),
    )
    report = launch(context, job)
    curve = report["curve"]
    metrics = {
        "objective_last": curve["objective"][-1],
        "loss_last": curve["loss"][-1],
        "accuracy_last": curve["accuracy"][-1],
        "weight_ess_mean": sum(curve["weight_ess"]) / len(curve["weight_ess"]),
        "tokens_per_second": sum(curve["tokens_per_second"]) / len(curve["tokens_per_second"]),
    } | ({"lambda_last": curve["lambda"][-1]} if "lambda" in curve else {})
    shown = {"loss": spec.align.loss.model_dump(mode="json"), "objective": spec.align.objective.model_dump(mode="json", by_alias=True)}
    shown["heaviest"] = heaviest_records(curve, context.fetch(spec.records))
    return StageOutput(rows=report["records"], metrics=metrics, facts=facts(report, report["records"]) | shown)


def heaviest_records(curve: dict[str, list[float]], records: Path) -> list[dict[str, Any]]:
    """The records that most often had the largest weight of a step: in how many steps, and their largest share of a step's weight."""
    import pyarrow.parquet as pq

    from dora_core.alignment import HEAVIEST

    shares: dict[int, list[float]] = {}
    for row, share in zip(curve[HEAVIEST], curve["max_weight"], strict=True):
        shares.setdefault(int(row), []).append(share)
    often = sorted((row for row in shares if row >= 0), key=lambda row: (-len(shares[row]), -max(shares[row]), row))[:HEAVIEST_SHOWN]
    ids = pq.read_table(records / "records.parquet", columns=["record_id"], filters=[("split", "=", "train")])["record_id"]
    return [{"record_id": ids[row].as_py(), "steps": len(shares[row]), "max_weight": max(shares[row])} for row in often]


def build_task(
    policy: Policy,
    worker: Worker,
    *,
    records: str,
    calibration: str | None,
    reference: str,
    align: AlignConfig,
    text: TextConfig,
    aggregate: str,
    execution: Execution,
) -> AlignmentTask:
    """Runs on every training worker: reads the three tables and joins them."""
    import numpy as np
    import pyarrow.parquet as pq

    from dora_core.alignment import AlignmentTask
    from dora_core.alignment_data import AlignmentData
    from dora_core.text import Encoder

    columns = ["record_id", "prompt", "responses", "rewards", "sources"]
    table = pq.read_table(f"{records}/records.parquet", columns=columns, filters=[("split", "=", "train")])
    factors = np.ones(len(table)) if calibration is None else record_factors(table, calibration, aggregate)
    logps = pq.read_table(f"{reference}/logps.parquet", columns=["record_id", "response_index", "logp"])
    limit = 2 if align.loss.reads_pairs_only else align.max_responses
    data = AlignmentData(table, factors, logps, Encoder(policy.tokenizer, text), limit)
    return AlignmentTask(policy.logps, policy.layers, data, align, execution, worker, policy.tokenizer.pad_token_id)


def record_factors(records: Any, calibration: str, aggregate: str) -> Any:
    """h per record, in the order of ``records``, from the calibration table's h per response."""
    import numpy as np
    import pyarrow.parquet as pq

    from dora_core.calibration import aggregate as aggregate_factors

    position = {record_id: i for i, record_id in enumerate(records["record_id"].to_pylist())}
    table = pq.read_table(f"{calibration}/calibration.parquet", columns=["record_id", "response_index", "h"])
    record = np.array([position[r] for r in table["record_id"].to_pylist()])
    best = [max(range(len(r)), key=lambda i, r=r: -np.inf if r[i] is None else r[i]) for r in records["rewards"].to_pylist()]
    chosen = table["response_index"].to_numpy() == np.array(best)[record]
    return aggregate_factors(table["h"].to_numpy(), record, aggregate, chosen)


if __name__ == "__main__":
    main(Spec, run)
