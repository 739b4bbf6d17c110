"""Stage ``align``: a preference loss under a robust objective, on Ray Train.

Input: records, calibration factors (where the objective uses them), reference log-probabilities, a starting model; joined and tokenised
by the stage ``training_data``, whose spec follows from this one (:meth:`Spec.preparation`). Output: ``model/``. Guarantee: every
optimisation step is the exact objective over its whole global batch, however it is spread over workers and micro-batches; a killed worker
resumes from the last checkpoint and ends with the same weights.
Cost: forward and backward over all responses, per epoch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dora_core.config.alignment import AlignConfig
from dora_core.config.method import OptimizationConfig
from dora_core.errors import DataError
from infra.store.store import Store
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.spec import StageRef
from tasks.runtime.stage import StageContext, StageOutput
from tasks.stages._align_spec import Spec as Spec
from tasks.stages._race_facts import Facts as RaceFacts
from tasks.tables.artifacts import RECORDS_FILE, TRAINING_DATA_FILE
from tasks.tables.rows import record_batches
from tasks.tables.training_records import count_trainable, count_unpaired
from tasks.training.facts import HeavyRecord, LossSettings, ObjectiveSettings, TrainingFacts

if TYPE_CHECKING:
    from dora_core.config.execution import Execution
    from dora_core.training.alignment import AlignmentTask
    from dora_core.training.distributed import Worker
    from tasks.training.job import Start

HEAVIEST_SHOWN = 10
MOST_EPOCHS = 1000


class Facts(TrainingFacts):
    """Facts of the alignment: settings of its loss and objective, and the records with the largest weights."""

    loss: LossSettings
    objective: ObjectiveSettings


def plugin_digests(align: AlignConfig) -> list[str]:
    """For :attr:`Spec.plugins`; empty if loss and objective are built in."""
    from dora_core.objectives import find_objective
    from dora_core.plugins import code_digest

    losses = [align.loss]
    for loss in losses:  # grows: a loss may have others among its parameters
        losses += loss.nested
    digests = [*map(code_digest, losses), code_digest(find_objective(align.objective.name))]
    return [digest for digest in digests if digest is not None]


def run(spec: Spec, context: StageContext) -> StageOutput:
    from dora_core.losses.unpaired import refuse_unpaired
    from tasks.training.job import TrainingJob
    from tasks.training.launch import launch

    unpaired, records = count_unpaired(context.fetch(spec.records) / RECORDS_FILE, "train")
    refuse_unpaired(spec.align.loss, unpaired, records)
    align = settings(spec, context)
    job = TrainingJob(
        build=build_task,
        arguments={
            "store_uri": context.store.uri,
            "data": spec.predecessors()["data"],
            "align": align,
            "execution": spec.execution,
        },
        model=spec.start or spec.model,
        optimization=align.optimization,
        execution=spec.execution,
        store_uri=context.store.uri,
        stage=spec.stage,
        digest=spec.digest(),
    )
    report = launch(context, job)
    curve = report.curve
    metrics = {
        "objective_last": curve["objective"][-1],
        "loss_last": curve["loss"][-1],
        "accuracy_last": curve["accuracy"][-1],
        "weight_ess_mean": sum(curve["weight_ess"]) / len(curve["weight_ess"]),
        "tokens_per_second": sum(curve["tokens_per_second"]) / len(curve["tokens_per_second"]),
    } | ({"lambda_last": curve["lambda"][-1]} if "lambda" in curve else {})
    facts = Facts.of(
        report,
        report.records,
        loss=spec.align.loss.model_dump(mode="json"),
        objective=align.objective.model_dump(mode="json", by_alias=True),
        heaviest=heaviest_records(curve, context.fetch(spec.records) / RECORDS_FILE),
        **({"unpaired": unpaired} if unpaired else {}),
    )
    return StageOutput(rows=report.records, metrics=metrics, facts=facts)


def settings(spec: Spec, context: StageContext) -> AlignConfig:
    """The settings that training uses: with the number of steps and the objective that depend on the data."""
    align = spec.align
    if spec.equal_steps:
        align = align.evolve(optimization=equal_steps(spec, context.fetch(spec.records) / RECORDS_FILE))
    if spec.race is not None:
        race = context.facts(spec.race, RaceFacts)
        align = align.evolve(objective=race.finalists[spec.recipe].objective if spec.recipe else race.objective)
    return align


def equal_steps(spec: Spec, records: Path) -> OptimizationConfig:
    """The optimisation settings with as many epochs over the selected records as make the steps of all records.

    Raises:
        DataError: the selected records are so few that they would be repeated more than a thousand times.
    """
    from dora_core.training.loop import Schedule

    wanted, selected = spec.align.optimization, count_trainable(records, spec.selection)
    steps = Schedule(count_trainable(records), wanted).steps
    epochs = steps / max(1, Schedule(selected, wanted).steps_per_epoch)
    if epochs > MOST_EPOCHS:
        raise DataError(
            f"{selected} selected records would repeat {epochs:.0f} times (at most {MOST_EPOCHS}) for the {steps} steps of all records",
            hint="give more of these records, or compare at equal epochs: golden_only_epochs instead of golden_only in evaluate.twins",
        )
    return wanted.evolve(epochs=epochs, max_steps=steps)


def heaviest_records(curve: dict[str, list[float]], records: Path) -> list[HeavyRecord]:
    """The records that most often had the largest weight of a step: in how many steps, and their largest share of a step's weight."""
    from dora_core.training.alignment import HEAVIEST

    shares: dict[int, list[float]] = {}
    for row, share in zip(curve[HEAVIEST], curve["max_weight"], strict=True):
        shares.setdefault(int(row), []).append(share)
    often = sorted((row for row in shares if row >= 0), key=lambda row: (-len(shares[row]), -max(shares[row]), row))[:HEAVIEST_SHOWN]
    ids: dict[int, str] = {}
    start = 0
    for batch in record_batches(records, ["record_id"], "train"):
        ids |= {row: batch["record_id"][row - start].as_py() for row in often if start <= row < start + len(batch)}
        start += len(batch)
    return [HeavyRecord(record_id=ids[row], steps=len(shares[row]), max_weight=max(shares[row])) for row in often]


def build_task(start: Start, worker: Worker, *, store_uri: str, data: StageRef, align: AlignConfig, execution: Execution) -> AlignmentTask:
    """Runs on every training worker: maps the training records, fetched from the store if this machine does not have them."""
    from dora_core.training.alignment import AlignmentTask
    from dora_core.training.alignment_data import AlignmentData

    records = AlignmentData(Store(store_uri).fetch(data.stage, data.digest) / TRAINING_DATA_FILE, align.drop_hardest)
    return AlignmentTask(start.module, start.layers, records, align, execution, worker, start.tokenizer.pad_token_id)


def headline(result: StageResult[Facts]) -> str:
    return f"{result.facts.steps} steps, training accuracy {result.metrics['accuracy_last']:.2f}"


STAGE = Stage(Spec, run, facts=Facts, headline=headline, section="training")
