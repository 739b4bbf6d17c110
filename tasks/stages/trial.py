"""Stage ``trial``: a short alignment, measured on held-out golden preferences at a few rungs, for searches and races.

Input: that of ``align``, of which a trial is one with fewer steps and without the train prompts of one fold. Output:
``rungs/<milestone>.json`` with step and measures (:class:`Rung`), and ``rungs/<milestone>.parquet`` (prompt_hash, margin) of the golden
pairs of that fold. Held-out pairs are of the *train* split: the evaluation split, by which the gate decides, is read by no trial.
Guarantee: a rung is a function of the spec alone, and one that is there is never computed again, so a search that was killed goes on where
it was. Cost: the steps, and at each rung a load of the model and a forward pass over the held-out golden responses.

Rungs are measured between pauses of one training, from whose checkpoint it goes on (``TrainingJob.until``): no worker waits for a decision.

Approximation: calibration factors of the other records come from classifiers that saw the held-out *texts* (not their labels), and label
probabilities (``trust.apply``) from golden labels of all folds. Both are the same for all trials that differ in settings of ``align``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from dora_core.config.tuning import TuneConfig
from dora_core.errors import DataError
from dora_core.evaluation.metrics import Interval
from dora_core.strict_model import StrictModel
from infra.store.store import Store
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.facts import Facts as BaseFacts
from tasks.runtime.stage import StageContext, StageOutput
from tasks.stages import _align_spec
from tasks.tables.artifacts import LOGPS_FILE, RECORDS_FILE
from tasks.tables.record_selection import HeldOutPrompts

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from tasks.training.job import TrainingJob

LEAST_GOLDEN = 10
"""Least number of held-out prompts with golden preferences: fewer cannot order any two trials."""


class Spec(_align_spec.Spec):
    """See the module docstring.

    Attributes:
        held_out: the prompts that judge.
        tune: of which the number of steps and the rungs count.
        labeller: carried column that names a label's annotator or judge; None: the responses' sources.
    """

    stage: ClassVar[str] = "trial"

    held_out: HeldOutPrompts
    tune: TuneConfig
    golden_sources: list[str]
    labeller: str | None = None

    def payload(self) -> dict[str, Any]:
        """Of ``tune`` only what a rung depends on: another metric, or more trials at once, is the same trial."""
        payload = super().payload()
        kept = ("fraction", "rungs", "reduction", "bootstrap_samples", "confidence", "seed")
        return payload | {"tune": {name: payload["tune"][name] for name in kept}}


class Rung(StrictModel):
    """One measurement of a trial."""

    milestone: int = Field(description="ASHA's time, in units of the first rung's.")
    step: int = Field(description="Optimisation steps done.")
    steps: int = Field(description="Optimisation steps of the whole trial.")
    loss: Interval = Field(description="Log-loss of held-out golden preferences at the policy's best scale, nats; log 2 is chance.")
    accuracy: Interval = Field(description="Share of held-out golden pairs in the right order.")
    seconds: float = Field(description="Time of its steps and its measurement.")


class Facts(BaseFacts):
    """See the module docstring."""

    rungs: list[Rung]


def run(spec: Spec, context: StageContext) -> StageOutput:
    done = list(rungs(spec, context))
    last = done[-1]
    return StageOutput(
        rows=last.loss.n, metrics={"golden_loss": last.loss.value, "golden_accuracy": last.accuracy.value}, facts=Facts(rungs=done)
    )


def rungs(spec: Spec, context: StageContext) -> Iterator[Rung]:
    """Yield every rung in order; those that are in the store without computing anything.

    Raises:
        DataError: hardly any held-out prompt has golden preferences. DoraError: of the training.
    """
    from dora_core.training.loop import Schedule
    from tasks.tables.training_records import count_trainable

    pairs: GoldenPairs | None = None
    planned: int | None = None
    for place, milestone in enumerate(spec.tune.milestones):
        rung = read_rung(spec, context, milestone)
        if rung is None:
            started = time.monotonic()
            records = context.fetch(spec.records) / RECORDS_FILE
            if pairs is None or planned is None:
                pairs = GoldenPairs.read(spec, records)
                kept = count_trainable(records, spec.selection, spec.held_out)
                kept -= int(spec.align.drop_hardest * kept)
                planned = max(1, round(spec.tune.fraction * Schedule(kept, spec.align.optimization).steps))
            step = spec.tune.steps(planned)[place]
            margin_P = _margins(spec, context, pairs, planned, step, milestone)
            rung = _measured(spec, pairs, margin_P, milestone, step, planned, time.monotonic() - started)
            _write_rung(context, rung, pairs, margin_P)
            context.journal.metrics(step - 1, {"golden_loss": rung.loss.value, "golden_accuracy": rung.accuracy.value})
            context.journal.flush()
        yield rung


def read_rung(spec: Spec, context: StageContext, milestone: int) -> Rung | None:
    content = context.store.read_json(f"{spec.stage}/{spec.digest()}/{_rung(milestone)}.json")
    return None if content is None else Rung.model_validate(content)


def has_rung(spec: Spec, store: Store, milestone: int) -> bool:
    """Return whether a measurement is in the store."""
    return store.has(f"{spec.stage}/{spec.digest()}/{_rung(milestone)}.json")


def _rung(milestone: int) -> str:
    return f"rungs/{milestone}"


def _write_rung(context: StageContext, rung: Rung, pairs: GoldenPairs, margin_P: NDArray[np.float64]) -> None:
    """Write the margins first: a rung's JSON says that it is done."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = _rung(rung.milestone)
    path = context.path / f"{name}.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"prompt_hash": pairs.prompt_P, "margin": margin_P}), path, compression="zstd")
    context.folder.commit(f"{name}.parquet")
    context.folder.write_json(f"{name}.json", rung.model_dump(mode="json"))


# --------------------------------------------------------------------------------------------------------------- measure


class GoldenPairs:
    """Golden pairs of the held-out prompts.

    Attributes:
        table: their records: record_id, prompt, responses, rewards.
        winner_P, loser_P: positions among the responses of all these records.
        prompt_P: uint64 hash of each pair's prompt.
    """

    def __init__(self, table: pa.Table, winner_P: NDArray[np.int64], loser_P: NDArray[np.int64], prompt_P: NDArray[np.uint64]):
        self.table, self.winner_P, self.loser_P, self.prompt_P = table, winner_P, loser_P, prompt_P

    @classmethod
    def read(cls, spec: Spec, records: Path) -> GoldenPairs:
        """Read the pairs of responses with different rewards, both with a golden label.

        Raises:
            DataError: fewer than :data:`LEAST_GOLDEN` prompts have one.
        """
        import numpy as np
        import pyarrow as pa

        from dora_core.data.unpaired import LABEL
        from tasks.stages._value_labels import GOLDEN, label_sources
        from tasks.tables.rows import record_batches

        tables, winners, losers, prompts, start = list[pa.Table](), list[int](), list[int](), list[int](), 0
        columns = ["record_id", "prompt", "responses", "rewards", "sources", "reward_kind", "prompt_hash", "extra"]
        for batch in record_batches(records, columns, "train"):
            held = batch.filter(pa.array(spec.held_out.of(batch["prompt_hash"])))
            kept = list[int]()
            for place, row in enumerate(held.drop_columns(["prompt", "responses"]).to_pylist()):
                sources, rewards = label_sources(row, spec.golden_sources, spec.labeller), row["rewards"]
                golden = [
                    i for i, reward in enumerate(rewards) if reward is not None and sources[i] == GOLDEN and row["reward_kind"] != LABEL
                ]
                strict = [(i, j) for i in golden for j in golden if rewards[i] > rewards[j]]
                if strict:
                    kept.append(place)
                    winners += [start + i for i, _ in strict]
                    losers += [start + j for _, j in strict]
                    prompts += [row["prompt_hash"]] * len(strict)
                    start += len(rewards)
            tables.append(held.take(pa.array(kept, pa.int64())).select(["record_id", "prompt", "responses"]))
        if (found := len(set(prompts))) < LEAST_GOLDEN:
            raise DataError(
                f"trials are compared on golden preferences, and {found} of the held-out train prompts (one of {spec.held_out.folds} "
                f"folds) have some; at least {LEAST_GOLDEN} are needed",
                hint="lower tune.folds to hold out more, give more golden records, or check data.golden_sources and trust.labeller",
            )
        indices = np.array(winners, dtype=np.int64), np.array(losers, dtype=np.int64), np.array(prompts, dtype=np.uint64)
        return cls(pa.concat_tables(tables), *indices)


def _margins(spec: Spec, context: StageContext, pairs: GoldenPairs, planned: int, step: int, milestone: int) -> NDArray[np.float64]:
    """Train to ``step``; log π/π_start of the better response of every pair minus that of the worse, nats."""
    import shutil

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tasks.runtime.shards import run_shards
    from tasks.stages._trial_scorer import TrialScorer
    from tasks.stages.reference import LogpArguments
    from tasks.tables.rows import responses_of
    from tasks.training.launch import launch

    launch(context, training_job(spec, context, planned, step))
    arguments = LogpArguments(store_uri=context.store.uri, execution=spec.execution, models={"policy": spec.ref()}, text=spec.text)
    rows = responses_of(pairs.table)
    scored = run_shards(
        context, rows, name=f"logps-{milestone}", worker=partial(TrialScorer, arguments), execution=spec.execution, unit="responses"
    )
    keys = ["record_id", "response_index"]
    reference = pq.read_table(context.fetch(spec.reference) / LOGPS_FILE, columns=[*keys, "logp"])
    joined = scored.select([*keys, "logp_policy"]).append_column("row", pa.array(np.arange(len(scored))))
    joined = joined.join(reference, keys, join_type="inner").sort_by("row")
    assert len(joined) == len(rows), "the reference stage covers every response of the same records"
    ratio_N = joined["logp_policy"].to_numpy() - joined["logp"].to_numpy()
    shutil.rmtree(context.path / "model", ignore_errors=True)  # the checkpoint has the weights
    margin_P: NDArray[np.float64] = ratio_N[pairs.winner_P] - ratio_N[pairs.loser_P]
    return margin_P


def training_job(spec: Spec, context: StageContext, planned: int, step: int) -> TrainingJob:
    """The training of a whole trial, up to ``step``."""
    from tasks.stages import align
    from tasks.training.job import TrainingJob

    settings = align.settings(spec, context)
    optimization = settings.optimization.evolve(max_steps=planned)
    data = {"store_uri": context.store.uri, "data": spec.predecessors()["data"], "execution": spec.execution}
    return TrainingJob(
        build=align.build_task,
        arguments=data | {"align": settings.evolve(optimization=optimization)},
        model=spec.start or spec.model,
        optimization=optimization,
        execution=spec.execution,
        store_uri=context.store.uri,
        stage=spec.stage,
        digest=spec.digest(),
        until=step,
    )


def _measured(
    spec: Spec, pairs: GoldenPairs, margin_P: NDArray[np.float64], milestone: int, step: int, planned: int, seconds: float
) -> Rung:
    from dora_core.evaluation.metrics import cluster_bootstrap, correct
    from dora_core.evaluation.preference_loss import calibrated_losses

    options = spec.tune.bootstrap_samples, spec.tune.confidence, spec.tune.seed
    return Rung(
        milestone=milestone,
        step=step,
        steps=planned,
        loss=cluster_bootstrap(calibrated_losses(margin_P, pairs.prompt_P), pairs.prompt_P, *options),
        accuracy=cluster_bootstrap(correct(margin_P), pairs.prompt_P, *options),
        seconds=seconds,
    )


def headline(result: StageResult[Facts]) -> str:
    last = result.facts.rungs[-1]
    return f"golden loss {last.loss.value:.3f} after {last.step} steps"


STAGE = Stage(Spec, run, Facts, headline=headline)
