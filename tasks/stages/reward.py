"""Stage ``reward``: a reward model from the data's own preferences.

Input: records, and a trunk to grow on: a ``sft`` stage's model or one by name. Output: ``model/``, a Hugging Face sequence classifier with
one output. Guarantee: only pairs of the train split are learned, each optimisation step is the exact mean over its global batch,
and a killed worker resumes from the last checkpoint and ends with the same weights. Its accuracy is reported on the training pairs
and on held-out pairs, selected in the same way. Unpaired records (one response with a label) have no pair: they are left out, with
a warning.
Cost: forward and backward over all responses with a preference, per epoch, and once more forward over both splits.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from dora_core.config.judging import RewardTrainingConfig
from dora_core.config.method import ModelConfig, TextConfig
from dora_core.errors import DataError
from dora_core.evaluation.metrics import Interval, estimate_text
from dora_core.strict_model import StrictModel
from infra.store.store import Store
from tasks.judges.reward_model import RewardArguments, RewardScorer
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.spec import StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.tables.artifacts import RECORDS_FILE
from tasks.tables.rows import record_batches, responses_of
from tasks.tables.training_records import count_unpaired
from tasks.training.facts import TrainingFacts

if TYPE_CHECKING:
    import pyarrow as pa

    from dora_core.training.distributed import Worker
    from dora_core.training.reward_model import RewardTask
    from tasks.training.job import Start

GOLDEN_PAIRS = 200
"""Least number of golden pairs for ``auto``: with about 100 of the known mixture a tiny reward model was no better than chance."""
BOOTSTRAP_SAMPLES, CONFIDENCE = 1000, 0.95


class Spec(StageSpec):
    """See the module docstring. ``start: None`` grows on ``model``."""

    stage: ClassVar[str] = "reward"
    version: ClassVar[int] = 2  # no dropout, no adapted routers, weights in their stored type

    records: StageRef
    start: StageRef | None
    model: ModelConfig
    text: TextConfig
    training: RewardTrainingConfig
    golden_sources: list[str]

    @model_validator(mode="after")
    def _check(self) -> Spec:
        if self.start is None and self.model.is_tiny:
            raise ValueError("the tiny model exists only once it is trained: give the sft stage that trained it as `start`")
        return self


class PairCounts(StrictModel):
    """Strict preferences per split."""

    train: int
    eval: int


class Facts(TrainingFacts):
    """Facts of the reward model: the pairs it learned from, and how many it orders rightly."""

    pairs: PairCounts
    accuracy: dict[str, Interval] = Field(description="Share of pairs ordered rightly, by split; a split without pairs is missing.")
    data: Literal["all", "golden"] = Field(description="Preferences that count: of every source, or of golden ones alone.")


class TrainedScorer(RewardScorer):
    """Scores with the reward model of a stage that is still running."""

    def model(self) -> ModelConfig:
        from tasks.training.job import trained_folder

        ref = self.arguments.model
        assert isinstance(ref, StageRef), "the stage that trains it"
        return ModelConfig(source=str(trained_folder(Store(self.arguments.store_uri), ref.stage, ref.digest)))


def run(spec: Spec, context: StageContext) -> StageOutput:
    from tasks.training.job import ScalarHead, TrainingJob
    from tasks.training.launch import launch

    trusted = trusted_sources(spec, context)
    pairs = PairCounts(train=count_pairs(spec, context, "train", trusted), eval=count_pairs(spec, context, "eval", trusted))
    unpaired, records = count_unpaired(context.fetch(spec.records) / RECORDS_FILE, "train")
    if not pairs.train:
        raise _nothing_to_learn(trusted, unpaired, records)
    job = TrainingJob(
        build=build_task,
        arguments={"store_uri": context.store.uri, "records": spec.records, "text": spec.text, "trusted": trusted},
        model=spec.start or spec.model,
        optimization=spec.training.optimization,
        execution=spec.execution,
        store_uri=context.store.uri,
        stage=spec.stage,
        digest=spec.digest(),
        kind=ScalarHead,
    )
    report = launch(context, job)
    accuracy = pair_accuracy(spec, context, trusted)
    metrics = {f"pairs_{split}": float(count) for split, count in pairs}
    metrics |= {f"accuracy_{split}": interval.value for split, interval in accuracy.items()}
    metrics |= {"records": report.records, "loss_last": report.curve["loss"][-1]}
    warnings = [*report.warnings, *doubts(accuracy.get("eval"))]
    if trusted is None and spec.training.data == "auto":
        few = f"fewer than {GOLDEN_PAIRS} training pairs are of golden sources alone"
        warnings.append(f"{few}: the reward model learned from all pairs, and the bias of their labels with them")
    if unpaired:
        warnings.append(
            f"{unpaired} of {records} training records are unpaired (one labelled response each) and left out: they have no pair"
        )
    data = "all" if trusted is None else "golden"
    facts = Facts.of(report, report.records, pairs=pairs, accuracy=accuracy, data=data, warnings=warnings)
    return StageOutput(rows=pairs.train, metrics=metrics, facts=facts)


def trusted_rewards(batch: pa.Table, trusted: list[str] | None) -> list[list[float | None]]:
    """Rewards for training: a reward of a source outside ``trusted`` counts as not measured."""
    from dora_core.data.records import is_golden_source

    rewards: list[list[float | None]] = batch["rewards"].to_pylist()
    if trusted is None:
        return rewards
    return [
        [reward if is_golden_source(source, trusted) else None for reward, source in zip(*of_record, strict=True)]
        for of_record in zip(rewards, batch["sources"].to_pylist(), strict=True)
    ]


def trusted_sources(spec: Spec, context: StageContext) -> list[str] | None:
    """Resolve ``training.data`` for this data: the sources whose preferences count; None = all."""
    wanted = spec.training.data
    if wanted == "auto":
        wanted = "golden" if count_pairs(spec, context, "train", spec.golden_sources) >= GOLDEN_PAIRS else "all"
    return spec.golden_sources if wanted == "golden" else None


def count_pairs(spec: Spec, context: StageContext, split: str, trusted: list[str] | None) -> int:
    """Number of a split's strict preferences that training, or its evaluation, may use."""
    from dora_core.evaluation.metrics import preference_pairs

    batches = record_batches(context.fetch(spec.records) / RECORDS_FILE, ["rewards", "sources"], split)
    return sum(len(preference_pairs(trusted_rewards(batch, trusted)).gap_P) for batch in batches)


def build_task(
    start: Start, worker: Worker, *, store_uri: str, records: StageRef, text: TextConfig, trusted: list[str] | None
) -> RewardTask:
    """Build the task; called on every training worker."""
    from dora_core.data.encoding import Encoder
    from dora_core.training.reward_model import RewardTask, preference_records

    encoder, examples = Encoder(start.tokenizer, text), []
    file = Store(store_uri).fetch(records.stage, records.digest) / RECORDS_FILE
    for batch in record_batches(file, ["prompt", "responses", "rewards", "sources"], "train"):
        prompts, responses = batch["prompt"].to_pylist(), batch["responses"].to_pylist()
        examples += preference_records(prompts, responses, trusted_rewards(batch, trusted), encoder)
    if not examples:
        raise DataError(
            f"the responses of every training pair are equal tokens: they differ only beyond text.max_response_tokens = "
            f"{text.max_response_tokens}",
            hint="raise text.max_response_tokens, so that the responses of a record differ within it",
        )
    return RewardTask(start.module, start.layers, examples, worker, start.tokenizer.pad_token_id)


def pair_accuracy(spec: Spec, context: StageContext, trusted: list[str] | None) -> dict[str, Interval]:
    """Share of pairs that the trained model orders rightly, by split, prompts weighing the same; a split without pairs is missing."""
    import numpy as np
    import pyarrow as pa

    from dora_core.evaluation.metrics import cluster_bootstrap, correct, preference_pairs
    from tasks.runtime.shards import run_shards

    columns = ["prompt", "prompt_hash", "split", "responses", "rewards", "sources"]
    records = pa.concat_tables(record_batches(context.fetch(spec.records) / RECORDS_FILE, columns))
    pairs = preference_pairs(trusted_rewards(records, trusted))
    used, places = np.unique(np.concatenate([pairs.winner_P, pairs.loser_P]), return_inverse=True)
    arguments = RewardArguments(store_uri=context.store.uri, execution=spec.execution, model=spec.ref(), text=spec.text)
    scored = run_shards(
        context,
        responses_of(records.select(["prompt", "responses"])).select(["prompt", "response"]).take(used),
        name="accuracy",
        worker=partial(TrainedScorer, arguments),
        execution=spec.execution,
        unit="responses",
    )
    winner_P, loser_P = scored["score"].to_numpy()[places].reshape(2, -1)
    correct_P, prompt_P = correct(winner_P - loser_P), records["prompt_hash"].to_numpy()[pairs.record_P]
    split_P = records["split"].to_numpy()[pairs.record_P]
    return {
        str(s): cluster_bootstrap(correct_P[split_P == s], prompt_P[split_P == s], BOOTSTRAP_SAMPLES, CONFIDENCE, seed=0)
        for s in np.unique(split_P)
    }


def doubts(held_out: Interval | None) -> list[str]:
    """Warnings about using this model as a judge."""
    if held_out is None:
        return ["no held-out record has a pair to check the reward model on: its accuracy on new prompts is not known"]
    if held_out.low > 0.5:
        return []
    interval = f"{estimate_text(held_out, '.2f')} on {held_out.n} prompts"
    return [f"the reward model's held-out accuracy, {interval}, is not shown to be above chance: give it more preferences"]


def _nothing_to_learn(trusted: list[str] | None, unpaired: int, records: int) -> DataError:
    if unpaired == records:
        return DataError(
            f"all {records} training records are unpaired (one response with a label), and a reward model learns from pairs",
            hint="set judge.model to a trained reward model, or group the rows of a prompt into one record "
            "(data.train[i].shape: rows, group by prompt)",
        )
    if trusted is None:
        return DataError(
            "no training record has a strict preference: rewards are missing or all tied",
            hint="map the right column with data.train[i].columns.rewards (or ranks), or give chosen/rejected pairs",
        )
    return DataError(
        f"no training record has two measured responses of golden sources ({', '.join(trusted)}), so there are no pairs to learn from",
        hint="set judge.training.data: all to learn from every pair, biased labels too; or name more sources in data.golden_sources",
    )


def headline(result: StageResult[Facts]) -> str:
    held_out = result.facts.accuracy.get("eval")
    return f"{result.rows} pairs" + (f", held-out accuracy {estimate_text(held_out, '.3f')}" if held_out else "")


STAGE = Stage(Spec, run, facts=Facts, headline=headline, section="training")
