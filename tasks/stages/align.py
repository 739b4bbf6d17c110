"""Stage ``align``: a preference loss under a robust objective, on Ray Train.

Input: records, calibration factors (where the objective uses them), reference log-probabilities, a starting model. Output:
``model/``. Guarantee: every optimisation step is the exact objective over its whole global batch, however it is spread over
workers and micro-batches; a killed worker resumes from the last checkpoint and ends with the same weights.
Cost: forward and backward over all responses, per epoch. The tables are joined and tokenised once, streamed, into a file in the store
(:func:`training_data`) that every worker fetches and maps into memory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from dora_core.config.alignment import AlignConfig
from dora_core.config.method import ModelConfig, TextConfig
from infra.store.store import Store, sha256_file
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.stage import StageContext, StageOutput, StageRef, StageSpec, local_model
from tasks.tables.rows import RECORDS_FILE, record_batches, responses_of

if TYPE_CHECKING:
    from dora_core.config.execution import Execution
    from dora_core.training.alignment import AlignmentTask
    from dora_core.training.distributed import Worker
    from tasks.training.job import Start

HEAVIEST_SHOWN = 10
DATA_MARKER = "data.json"


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
    from tasks.training.job import TrainingJob
    from tasks.training.launch import facts, launch

    job = TrainingJob(
        build=build_task,
        arguments={
            "store_uri": context.store.uri,
            "data": training_data(spec, context),
            "align": spec.align,
            "execution": spec.execution,
        },
        model=spec.start or spec.model,
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
    shown["heaviest"] = heaviest_records(curve, context.fetch(spec.records) / RECORDS_FILE)
    return StageOutput(rows=report["records"], metrics=metrics, facts=facts(report, report["records"]) | shown)


def training_data(spec: Spec, context: StageContext) -> str:
    """Join, choose and tokenise the training records; returns the file's place in the store.

    The file is named by the sha256 of its content, so a worker that has it has it whole; a marker remembers it for the next attempt.
    """
    from dora_core.data.encoding import Encoder
    from dora_core.models.loading import load_tokenizer
    from dora_core.training.alignment_data import FORMAT, write_alignment_data
    from tasks.tables.training_records import FACTORS, LOGPS, joined_records

    folder = f"{spec.stage}/{spec.digest()}/scratch"
    marker = context.store.read_json(f"{folder}/{DATA_MARKER}")
    if marker is not None and marker["format"] == FORMAT and marker["name"] in context.store.list(folder):
        path = local_file(context.store, f"{folder}/{marker['name']}")
        if path.stem == sha256_file(path):
            return f"{folder}/{marker['name']}"
    records = context.fetch(spec.records) / RECORDS_FILE
    factors = None if spec.calibration is None else context.fetch(spec.calibration) / FACTORS
    batches = joined_records(records, context.fetch(spec.reference) / LOGPS, factors, spec.aggregate)
    sources: set[str | None] = set()
    count = 0
    for batch in record_batches(records, ["sources"], "train"):
        sources.update(responses_of(batch)["source"].unique().to_pylist())
        count += len(batch)
    tokenizer = load_tokenizer(local_model(spec.start or spec.model, context.store.uri))
    limit = 2 if spec.align.loss.reads_pairs_only else spec.align.max_responses
    temporary = context.scratch / f".{os.getpid()}.tmp"
    write_alignment_data(temporary, batches, Encoder(tokenizer, spec.text), limit, sources=sources, records=count)
    name = f"{sha256_file(temporary)}.arrow"
    os.replace(temporary, context.scratch / name)
    context.folder.commit(f"scratch/{name}")
    context.folder.write_json(f"scratch/{DATA_MARKER}", {"format": FORMAT, "name": name})
    return f"{folder}/{name}"


def heaviest_records(curve: dict[str, list[float]], records: Path) -> list[dict[str, Any]]:
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
    return [{"record_id": ids[row], "steps": len(shares[row]), "max_weight": max(shares[row])} for row in often]


def build_task(start: Start, worker: Worker, *, store_uri: str, data: str, align: AlignConfig, execution: Execution) -> AlignmentTask:
    """Runs on every training worker: maps the training records, from the store if this machine does not have them."""
    from dora_core.training.alignment import AlignmentTask
    from dora_core.training.alignment_data import AlignmentData

    records = AlignmentData(local_file(Store(store_uri), data))
    return AlignmentTask(start.module, start.layers, records, align, execution, worker, start.tokenizer.pad_token_id)


def local_file(store: Store, relative: str) -> Path:
    """A file of the store that is named by its content, here; downloads are atomic, so one that is here is whole."""
    path = store.local_root / relative
    return path if path.exists() else store.download(relative)


def headline(result: StageResult[Any]) -> str:
    return f"{result.facts.steps} steps, training accuracy {result.metrics['accuracy_last']:.2f}"


STAGE = Stage(Spec, run, headline=headline, section="training")
