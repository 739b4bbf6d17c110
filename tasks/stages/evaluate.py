"""Stage ``evaluate``: measures of the aligned policy on held-out prompts, and the promotion gate.

Input: records (eval split), the aligned policy, its start (through the reference stage's log-probabilities), optionally twins
(``dora_core/config/twins.py``), and a comparison of the policy's responses with others'. Output: ``evaluation.parquet`` (one row per
preference pair), ``responses.parquet`` (one row per held-out response: record_id, response_index, implicit, logp_per_token, tokens of the
policy), no texts; in the facts the measures (``tasks/stages/_preference_measures.py``), those of the twins
(``tasks/stages/_twin_measures.py``) and the result of the gate (``tasks/stages/_promotion_gate.py``).
Guarantee: every measure carries a bootstrap interval over prompts; comparisons are paired.

Three readings of a preference pair: *accuracy*, the implicit reward log π − log π_start is larger for the better response
(chance ½, undefined for the start); *margin*, by how many nats; *ranking*, the likelihood per token is larger for it, which the
start has too, so lifts over the start are differences in ranking. Unpaired records (``dora_core/data/unpaired.py``) are read by their
labels: the AUC of the implicit reward and the share with the label's sign; records of one prompt with different labels also make pairs.
Accuracy of pairs is also given by the source of the better response, by task, and by the values of the carried columns that
``evaluate.groups`` names.
Cost: one forward pass over held-out responses per policy, and ``kl_prompts`` sampled responses.
"""

from __future__ import annotations

from collections.abc import Container
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from dora_core.config.execution import KL_NEEDS_MODEL
from dora_core.config.method import EvaluateConfig, GateConfig, GenerateConfig, ModelConfig, TextConfig
from dora_core.errors import ConfigError, DataError
from dora_core.evaluation.metrics import estimate_text
from dora_core.strict_model import is_empty
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.spec import ModelSource, StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.runtime.workers import ModelWorker, WorkerArguments
from tasks.stages import benchmarks, compare
from tasks.stages._evaluate_facts import BenchmarkChange, RewardCorrelation
from tasks.stages._evaluate_facts import Facts as Facts
from tasks.stages._preference_measures import HeldOut, measure, rank_correlation
from tasks.stages._promotion_gate import Evidence, decide
from tasks.stages._twin_measures import summary, twin_measures
from tasks.tables.artifacts import BENCHMARKS_FILE, EVALUATION_FILE, RESPONSES_FILE
from tasks.training.facts import TrainingFacts

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from dora_core.evaluation.metrics import Interval, Pairs
    from tasks.stages._preference_measures import Labelled, Scores

KL_SHARD = 16
"""Prompts per shard: few enough to share among workers; fixed, so that batches do not depend on ``execution.shard_rows``."""


class Spec(StageSpec):
    """See the module docstring."""

    stage: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 5  # packed or padded by structure, in every dtype

    records: StageRef
    policy: StageRef
    reference: StageRef
    start: StageRef | None
    model: ModelConfig
    twins: dict[str, StageRef] = Field(default_factory=dict)
    comparison: StageRef | None = None
    benchmarks: dict[str, StageRef] = Field(default_factory=dict, exclude_if=is_empty)
    text: TextConfig
    evaluate: EvaluateConfig
    gate: GateConfig
    golden_sources: list[str]


class KLArguments(WorkerArguments):
    """Arguments of :class:`KLSampler`."""

    policy: StageRef
    start: ModelSource
    text: TextConfig
    generate: GenerateConfig


class KLSampler(ModelWorker[KLArguments]):
    """Samples one response per prompt from the policy; log π − log π_start of it is an unbiased draw of the KL.

    Samples are cut at ``max_new_tokens``, so the KL is that of the cut text.
    """

    def load(self) -> None:
        from dora_core.data.encoding import Encoder
        from dora_core.models.logprobs import ResponseLogps

        model, self._tokenizer = self.load_policy(self.arguments.policy)
        self._policy, self._start = ResponseLogps(model), ResponseLogps(self.load_policy(self.arguments.start)[0])
        self._encoder = Encoder(self._tokenizer, self.arguments.text)
        self._ends = self._encoder.ends(model.generation_config)

    def __call__(self, rows: pa.Table) -> pa.Table:
        import pyarrow as pa

        from dora_core.data.encoding import EncodedResponse
        from dora_core.models.generation import sample
        from dora_core.models.logprobs import score_responses

        pad = self._tokenizer.pad_token_id
        prompts = [prompt.ids for prompt in self._encoder.prompts(rows["prompt"].to_pylist())]
        keys = rows["prompt_hash"].to_pylist()
        model, budget = self._policy.plain_model, self.budget
        sampled = sample(model, prompts, keys, self.arguments.generate, eos_id=self._ends, pad_id=pad, batch_tokens=budget)
        responses = [EncodedResponse(prompt, one.ids, 0) for prompt, (one,) in zip(prompts, sampled, strict=True)]
        ours = score_responses(self._policy, responses, pad, budget, self.device)
        theirs = score_responses(self._start, responses, pad, budget, self.device)
        kl = [a - b for a, b in zip(ours, theirs, strict=True)]
        return pa.table({"record_id": rows["record_id"], "kl": pa.array(kl, pa.float64())})


def run(spec: Spec, context: StageContext) -> StageOutput:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dora_core.data.unpaired import LABEL
    from dora_core.evaluation.groups import group_rows
    from dora_core.evaluation.labels import joined_pairs, label_pairs
    from dora_core.evaluation.metrics import preference_pairs

    if spec.execution.stream_layers and spec.evaluate.kl_prompts:
        raise ConfigError(KL_NEEDS_MODEL)
    columns = ["record_id", "prompt", "prompt_hash", "responses", "rewards", "reward_kind", "sources", "task"]
    columns += ["extra"] if spec.evaluate.groups else []
    records = pq.read_table(context.fetch(spec.records) / "records.parquet", columns=columns, filters=[("split", "=", "eval")])
    rewards, prompt_R = records["rewards"].to_pylist(), records["prompt_hash"].to_numpy()
    labelled = [kind == LABEL for kind in records["reward_kind"].to_pylist()]
    of_labels = label_pairs(rewards, labelled, prompt_R)
    pairs = joined_pairs(preference_pairs(rewards), of_labels)
    if len(pairs.record_P) == 0 and not any(labelled):
        raise DataError(
            f"none of the {len(records)} held-out records has a preference, so nothing can be evaluated",
            hint="raise data.holdout_fraction, or give rewards (or chosen/rejected, or labels) to more records",
        )
    implicit, likelihood, responses = score_policies(spec, context, records)
    pairs, equal = distinct_pairs(pairs, responses["key"].to_numpy(), [text for row in records["responses"].to_pylist() for text in row])
    if len(pairs.record_P) == 0 and not any(labelled):
        raise DataError(
            f"in all {equal} held-out preferences the responses are equal tokens: they differ only beyond "
            f"text.max_response_tokens = {spec.text.max_response_tokens}, so nothing can be evaluated",
            hint="raise text.max_response_tokens, so that the responses of a record differ within it",
        )
    responses = responses.drop_columns("key")
    sources = [s for row in records["sources"].to_pylist() for s in row]
    groups = {
        "source": np.array([sources[i] or "unknown" for i in pairs.winner_P], dtype=object),
        "task": np.array(records["task"].to_pylist(), dtype=object)[pairs.record_P],
    }
    golden_P = golden_pairs(sources, pairs, spec.golden_sources)
    labels = labelled_responses(records, labelled, len(of_labels.record_P)) if any(labelled) else None
    carried = {grouping.column: group_rows(records["extra"].to_pylist(), grouping) for grouping in spec.evaluate.groups}
    held_out = HeldOut(pairs, implicit, likelihood, prompt_R[pairs.record_P], golden_P, groups, spec.evaluate, labels, carried)
    scores = {"implicit": implicit["policy"], "likelihood": likelihood["policy"], "likelihood_start": likelihood["start"]}
    correlation = {name: rank_correlation(values, rewards, prompt_R, spec.evaluate) for name, values in scores.items()}
    measures = measure(held_out, reward_scale(spec, context), estimate_kl(spec, context, records), RewardCorrelation(**correlation))
    comparison = context.facts(spec.comparison, compare.Facts) if spec.comparison else None
    twins = twin_measures(list(spec.twins), measures, comparison)
    asked = benchmark_changes(spec, context)
    gate = decide(spec.gate, Evidence(measures, comparison.wins if comparison else {}, spec.evaluate.min_group, asked))
    facts = Facts(**dict(measures), **left_out(equal), gate=gate, twins=twins, summary=summary(twins, comparison), benchmarks=asked)

    table = {"record": pairs.record_P, "prompt_hash": held_out.prompt_P, "golden": golden_P, "reward_gap": pairs.gap_P}
    table |= {f"margin_{name}": values for name, values in held_out.margins.items()}
    pq.write_table(
        pa.table(table | {"winner_source": pa.array(groups["source"], pa.string())}),
        context.path / EVALUATION_FILE,
        compression="zstd",
    )
    responses = responses.add_column(2, "implicit", pa.array(implicit["policy"]))
    responses = responses.add_column(3, "logp_per_token", pa.array(likelihood["policy"]))
    pq.write_table(responses, context.path / RESPONSES_FILE, compression="zstd")
    return StageOutput(rows=len(pairs.record_P), metrics=metrics_of(facts), facts=facts)


def distinct_pairs(pairs: Pairs, key_R: np.ndarray, texts: list[str]) -> tuple[Pairs, int]:
    """The pairs without those of different responses that are the same tokens after the cut, and their number: every model gives both the
    same score, which would count as half right."""
    import numpy as np

    from dora_core.evaluation.metrics import Pairs

    same_P = key_R[pairs.winner_P] == key_R[pairs.loser_P]
    equal_P = same_P & np.array([texts[i] != texts[j] for i, j in zip(pairs.winner_P, pairs.loser_P, strict=True)], dtype=bool)
    if not equal_P.any():
        return pairs, 0
    kept = ~equal_P
    return Pairs(pairs.record_P[kept], pairs.winner_P[kept], pairs.loser_P[kept], pairs.gap_P[kept]), int(equal_P.sum())


def left_out(equal: int) -> dict[str, Any]:
    """Facts about preferences that are equal after the cut; none where there are none."""
    limit = "text.max_response_tokens"
    return {"equal_pairs": equal, "warnings": [f"{equal} preferences were left out: responses differ only beyond {limit}"]} if equal else {}


def metrics_of(facts: Facts) -> dict[str, float]:
    """Return the metrics for comparing runs."""
    metrics = {name: interval.value for name, interval in intervals_of(facts).items()}
    for column, found in facts.by_column.items():
        for name, group in found.groups.items():
            metrics[_free_name(f"by/{column}/{name}", metrics)] = group.accuracy.value
    return metrics | {"gate_passed": float(facts.gate.passed)}


def intervals_of(facts: Facts) -> dict[str, Interval]:
    """Return the estimates behind :func:`metrics_of` with their intervals, by the same names."""
    found: dict[str, Interval | None] = {f"accuracy_{part}": measures.accuracy.policy for part, measures in facts.parts.items()}
    if whole := facts.parts.get("all"):
        found |= {f"ranking_{name}": interval for name, interval in whole.ranking.measured().items()}
        found |= {"margin": whole.margin.policy}
    found |= {f"lift_start_{part}": interval for part, interval in facts.lift.over_start().items()}
    for name, twin in facts.twins.items():
        found |= {f"accuracy_{name}": twin.accuracy, f"accuracy_lift_over_{name}": twin.accuracy_lift}
        found |= {f"win_rate_lift_over_{name}": twin.win_rate_lift}
    found |= {"ece": facts.reward_calibration.ece} if facts.reward_calibration else {}
    if labels := facts.labels:
        found |= {"label_accuracy": labels.accuracy.policy, "label_auc": labels.auc.policy if labels.auc else None}
    found |= {"kl": facts.kl, "worst_group_accuracy": facts.worst_group}
    for task, benchmark in facts.benchmarks.items():
        found |= {f"benchmark_{task}": benchmark.policy, f"benchmark_change_{task}": benchmark.change}
    return {name: interval for name, interval in found.items() if interval is not None}


def _free_name(wanted: str, taken: Container[str]) -> str:
    """A metric's name that no other metric has: column and value may both hold the ``/`` between them."""
    number, name = 1, wanted
    while name in taken:
        number += 1
        name = f"{wanted}.{number}"
    return name


def labelled_responses(records: pa.Table, labelled: list[bool], pairs: int) -> Labelled:
    """Responses of the unpaired records.

    Raises:
        DataError: one of them does not have exactly one label.
    """
    import numpy as np

    from dora_core.data.unpaired import check_unpaired, is_desirable
    from tasks.stages._preference_measures import Labelled

    record_L, rewards = np.flatnonzero(labelled), records["rewards"].to_pylist()
    for record in record_L:
        check_unpaired(records["record_id"][int(record)].as_py(), rewards[record])
    start_R = np.cumsum([0, *map(len, rewards)])[:-1]
    desirable_L = np.array([is_desirable(rewards[record]) for record in record_L], dtype=bool)
    return Labelled(start_R[record_L], desirable_L, records["prompt_hash"].to_numpy()[record_L], pairs)


def score_policies(spec: Spec, context: StageContext, records: pa.Table) -> tuple[Scores, Scores, pa.Table]:
    """Scores of every held-out response: implicit rewards log π − log π_start by policy, likelihoods per token log π / |y| by model, and
    the table of the responses (record_id, response_index, key, tokens; equal keys: equal tokens).

    The start has no implicit reward (its ratio is identically 0), so policies and start are compared by likelihood.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tasks.runtime.shards import run_shards
    from tasks.stages.reference import LogpArguments, LogpScorer
    from tasks.tables.rows import responses_of

    policies = {"policy": spec.policy} | spec.twins
    arguments = LogpArguments(store_uri=context.store.uri, execution=spec.execution, models=policies, text=spec.text, keyed=True)
    scored = run_shards(
        context,
        responses_of(records.select(["record_id", "prompt", "responses"])),
        name="logps",
        worker=partial(LogpScorer, arguments),
        execution=spec.execution,
        unit="responses",
    )
    keys = ["record_id", "response_index"]
    reference = pq.read_table(context.fetch(spec.reference) / "logps.parquet", columns=[*keys, "logp", "tokens"])
    position = scored.select(keys).append_column("row", pa.array(np.arange(len(scored))))
    start = position.join(reference, keys, join_type="inner").sort_by("row")
    assert len(start) == len(scored), "the reference stage covers every response of the same records"
    logp = {name: scored[f"logp_{name}"].to_numpy() for name in policies} | {"start": start["logp"].to_numpy()}
    implicit = {name: logp[name] - logp["start"] for name in policies}
    tokens = start["tokens"].to_numpy()
    return (
        implicit,
        {name: values / tokens for name, values in logp.items()},
        scored.select([*keys, "key"]).append_column("tokens", pa.array(tokens)),
    )


def golden_pairs(sources: list[str | None], pairs: Pairs, golden_sources: list[str]) -> np.ndarray:
    """True for pairs with a trusted response; the other pairs compare model outputs with each other."""
    import numpy as np

    from dora_core.data.records import is_golden_source

    golden = np.array([s is not None and is_golden_source(s, golden_sources) for s in sources], dtype=bool)
    either: np.ndarray = golden[pairs.winner_P] | golden[pairs.loser_P]
    return either


def estimate_kl(spec: Spec, context: StageContext, records: pa.Table) -> Interval | None:
    """KL(policy‖start) in nats per sampled response, over up to ``kl_prompts`` held-out prompts."""
    import numpy as np

    from dora_core.evaluation.metrics import cluster_bootstrap
    from tasks.runtime.shards import run_shards

    count = min(spec.evaluate.kl_prompts, len(records))
    if count == 0:
        return None
    order = records["prompt_hash"].to_numpy().argsort(kind="stable")[:count]
    arguments = KLArguments(
        store_uri=context.store.uri,
        execution=spec.execution,
        policy=spec.policy,
        start=spec.start or spec.model,
        text=spec.text,
        generate=GenerateConfig(max_new_tokens=spec.evaluate.kl_max_new_tokens, seed=spec.evaluate.seed),
    )
    sampled = run_shards(
        context,
        records.select(["record_id", "prompt", "prompt_hash"]).take(order),
        name="kl",
        worker=partial(KLSampler, arguments),
        execution=spec.execution.model_copy(update={"shard_rows": KL_SHARD}),
        unit="samples",
    )
    options = spec.evaluate
    kl_K = sampled["kl"].to_numpy()
    return cluster_bootstrap(kl_K, np.arange(count), options.bootstrap_samples, options.confidence, options.seed)


def benchmark_changes(spec: Spec, context: StageContext) -> dict[str, BenchmarkChange]:
    """Scores of policy and start by task, and their paired difference; empty without benchmarks."""
    import numpy as np
    import pyarrow.parquet as pq

    from dora_core.evaluation.benchmarks import changes

    if not spec.benchmarks:
        return {}
    marks: dict[str, dict[str, np.ndarray]] = {}
    for model, ref in spec.benchmarks.items():
        table = pq.read_table(context.fetch(ref) / BENCHMARKS_FILE)
        task, values = np.array(table["task"].to_pylist(), dtype=object), table["mark"].to_numpy()
        marks[model] = {name: values[task == name] for name in dict.fromkeys(task.tolist())}
    scores = {model: context.facts(ref, benchmarks.Facts).scores for model, ref in spec.benchmarks.items()}
    return {
        task: BenchmarkChange(
            metric=scores["policy"][task].metric, start=scores["start"][task].value, policy=scores["policy"][task].value, change=change
        )
        for task, change in changes(marks["policy"], marks["start"], spec.evaluate.seed).items()
    }


def reward_scale(spec: Spec, context: StageContext) -> float:
    """β of the policy's loss, 1 for a policy without one. Losses whose reward is not β log π/π_start (lengths divided out, lists) are read
    as if it were.
    """
    loss = context.facts(spec.policy, TrainingFacts).loss
    return 1.0 if loss is None or loss.beta is None else loss.beta


def headline(result: StageResult[Facts]) -> str:
    whole, lift, labels = result.facts.parts.get("all"), result.facts.lift.start_all, result.facts.labels
    parts = []
    if whole is not None and lift is not None:
        parts.append(f"accuracy {estimate_text(whole.accuracy.policy, '.3f')}, ranking {lift.value:+.3f} over the start")
    if labels is not None:
        auc = f", AUC {estimate_text(labels.auc.policy, '.3f')}" if labels.auc else ""
        parts.append(f"{labels.desirable + labels.undesirable} labels{auc}, sign right {estimate_text(labels.accuracy.policy, '.3f')}")
    return "; ".join([*parts, *([result.facts.summary] if result.facts.summary else [])])


TRACKED = (
    *("accuracy_all", "worst_group_accuracy", "ranking_policy", "lift_start_", "ece", "kl"),
    *("win_rate_lift_over_", "benchmark_"),
)
STAGE = Stage(
    Spec, run, facts=Facts, headline=headline, tracked=TRACKED, intervals=lambda result: intervals_of(result.facts), section="stage"
)
