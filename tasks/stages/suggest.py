"""Stage ``suggest``: which records a person should label next (``dora label suggest``).

Input: records, calibration factors (where the run has them). Output: ``suggestions.parquet`` (rank, record_id, first, second: places of the
two responses to compare; gain, factor, disagreement, trust, source), best first, without texts. Candidates are the train records without a
golden label: the best against the worst response of a record with a synthetic preference, else its first two different responses. Pairs
that people have labelled in another record are left out. Guarantee: the probabilities of a pair come from heads that did not see its
prompt; the same inputs give the same bytes. Cost: that of the stage ``race`` without robust objectives, and one pass over the candidates'
texts; no model is loaded. Memory: features of ``max_candidates`` pairs, 2.6 kB each, those of the smallest hashes of the prompt.

The rules are in ``dora_core/selection/acquisition.py``. With fewer golden labels than :data:`LEAST_GOLDEN` there is no race: then only the
rule ``information`` can rank, by the texts alone.

Left out: prompts with tool calls, which a labelling page cannot show; unpaired records; features of the policy (``exchange.features``), so
that no model is loaded: pairs are ranked by features of their texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from dora_core.config.valuation import ExchangeConfig, RaceConfig, TrustConfig
from dora_core.errors import DataError
from dora_core.selection.acquisition import DEFAULT, Rule
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.facts import Facts as BaseFacts
from tasks.runtime.spec import StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.stages._value_labels import NO_PREFERENCE, UNNAMED, Labels, find_overlap, proxy_pairs, read_labels
from tasks.stages._value_trust import estimate_trust
from tasks.tables.artifacts import CALIBRATION_FILE, RECORDS_FILE, SUGGESTIONS_FILE
from tasks.tables.rows import record_batches
from tasks.tables.training_records import Aggregate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dora_core.selection.acquisition import Candidates, GoldenPairs
    from dora_core.selection.features import TextFeatures

LEAST_GOLDEN = 10
"""Least number of golden-labelled prompts for a race, as in the stage ``race``."""


class Spec(StageSpec):
    """See the module docstring."""

    stage: ClassVar[str] = "suggest"
    version: ClassVar[int] = 2  # biased judges in label trust

    records: StageRef
    calibration: StageRef | None
    number: int = Field(ge=1, le=100_000)
    rule: Rule = DEFAULT
    trust: TrustConfig
    exchange: ExchangeConfig
    race: RaceConfig
    golden_sources: list[str]
    aggregate: Aggregate = "mean"
    max_candidates: int = Field(20_000, ge=100)


class Facts(BaseFacts):
    """The suggestion as numbers."""

    candidates: int = Field(description="Pairs that were compared.")
    left_out: int = Field(description="Further pairs, beyond `max_candidates`.")
    suggested: int
    prompts: int = Field(description="Different prompts among the suggested pairs.")
    golden_labels: int
    members: dict[str, float] = Field(description="Members of the race by their share; empty without a race.")
    sources: dict[str, int] = Field(description="Suggested pairs by the source of their present label; none: unlabelled.")
    warnings: list[str] = Field(default_factory=list)


@dataclass(frozen=True)
class Pool:
    """Candidate pairs: record positions, places and texts of the two responses, prompts."""

    record_N: NDArray[np.int64]
    places_N2: NDArray[np.int64]
    prompts: list[str]
    responses: tuple[list[str], list[str]]

    def differences(self, features: TextFeatures) -> NDArray[np.float64]:
        first, second = (features(self.prompts, texts) for texts in self.responses)
        difference: NDArray[np.float64] = first - second
        return difference


def run(spec: Spec, context: StageContext) -> StageOutput:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dora_core.selection.acquisition import suggest

    records = context.fetch(spec.records) / RECORDS_FILE
    factors = None if spec.calibration is None else context.fetch(spec.calibration) / CALIBRATION_FILE
    labels = read_labels(records, factors, spec.aggregate, spec.golden_sources, spec.trust.labeller, spec.exchange.max_sources)
    overlap = find_overlap(records, labels)
    wanted_R = (labels.group_R != 0) & ~labels.golden_R
    wanted_R[list(overlap.right)] = False
    pool, left_out = read_pool(records, labels, wanted_R, spec.max_candidates, spec.exchange.seed)
    if len(pool.record_N) == 0:
        raise DataError(
            "no training record is left to label: every pair of different responses has a golden label",
            hint="add unlabelled or synthetic records to data.train, or check data.golden_sources and trust.labeller",
        )
    warnings = list[str]()
    candidates, golden, members, ridge = as_candidates(spec, context, records, labels, pool, warnings)
    found = suggest(candidates, spec.number, spec.rule, golden=golden, ridge=ridge)
    at = found.positions
    group_N = labels.group_R[pool.record_N[at]]
    names = [None if group == NO_PREFERENCE else labels.names[group] for group in group_N.tolist()]
    table = {
        "rank": pa.array(np.arange(1, len(at) + 1), pa.int64()),
        "record_id": pa.array([labels.ids[i] for i in pool.record_N[at]], pa.string()),
        "first": pa.array(pool.places_N2[at, 0], pa.int64()),
        "second": pa.array(pool.places_N2[at, 1], pa.int64()),
        "gain": pa.array(found.gain),
        "factor": pa.array(candidates.factor_N[at]),
        "disagreement": pa.array(candidates.disagreement_N[at]),
        "trust": pa.array(candidates.trust_N[at], pa.float64(), mask=group_N == NO_PREFERENCE),
        "source": pa.array(names, pa.string()),
    }
    pq.write_table(pa.table(table), context.path / SUGGESTIONS_FILE, compression="zstd")
    facts = Facts(
        candidates=len(candidates),
        left_out=left_out,
        suggested=len(at),
        prompts=len(np.unique(candidates.prompt_N[at])),
        golden_labels=labels.count(0),
        members=members,
        sources={name: names.count(None if name == UNNAMED else name) for name in sorted({name or UNNAMED for name in names})},
        warnings=warnings,
    )
    for warning in warnings:
        context.log.warning("%s", warning)
    return StageOutput(rows=len(at), metrics={"candidates": len(candidates), "suggested": len(at)}, facts=facts)


def as_candidates(
    spec: Spec, context: StageContext, records: Path, labels: Labels, pool: Pool, warnings: list[str]
) -> tuple[Candidates, GoldenPairs | None, dict[str, float], float]:
    """What the rules read: the candidates, the golden pairs, the members' shares, and the ridge of the race."""
    import numpy as np

    from dora_core.data.records import fold_of
    from dora_core.evaluation.metrics import sigmoid
    from dora_core.selection.acquisition import Candidates, GoldenPairs
    from dora_core.selection.race import Race, RaceData, entrants, ridge_of
    from dora_core.selection.reversal import label_probability

    prompt_N, factor_N = labels.prompt_R[pool.record_N], labels.factor_R[pool.record_N]
    even_N, ones = np.full(len(prompt_N), 0.5), np.ones(1)
    chosen = labels.sample(spec.exchange.max_labels, spec.exchange.seed)
    if labels.golden_prompts < LEAST_GOLDEN:
        few = f"{labels.golden_prompts} prompts have golden labels, fewer than {LEAST_GOLDEN}"
        if spec.rule != "information":
            raise DataError(f"the rule {spec.rule} needs a race, and {few}", hint="use --rule information, which ranks by the texts alone")
        warnings.append(f"{few}: pairs are ranked by their texts alone")
        from dora_core.selection.features import TextFeatures

        features = TextFeatures.fit(pool.prompts * 2, [*pool.responses[0], *pool.responses[1]], spec.exchange.buckets)
        nothing = np.zeros((1, len(prompt_N)))
        return Candidates(pool.differences(features), prompt_N, factor_N, nothing, ones, even_N, even_N, nothing[0]), None, {}, 1.0
    pairs, of_pairs, record_P = proxy_pairs(records, labels, chosen, spec.exchange.evolve(features="text"))
    assert of_pairs.text is not None, "features of texts were asked for"
    estimate = estimate_trust(spec.trust, spec.exchange, labels, find_overlap(records, labels), pairs, warnings)
    trust = estimate.trust
    label_P = None if estimate.held_out is None or trust is None else trust.probability_P
    race = Race(RaceData(pairs, labels.factor_R[record_P], label_P, estimate.held_out), ridge_of(pairs), spec.race.seed)
    field = entrants(factors=spec.calibration is not None, trust=label_P is not None, objectives=())
    for done, entrant in enumerate(field):
        context.progress(done, len(field), "entrants", entrant.name)
        race.run(entrant)
    choice = race.choose()
    difference_ND, fold_N = pool.differences(of_pairs.text), fold_of(prompt_N, spec.exchange.folds)
    margin_MN = np.stack([race.margins(entrant, difference_ND, fold_N) for entrant in choice.shares])
    share_M = np.array(list(choice.shares.values()))
    people_N = share_M @ sigmoid(margin_MN) if trust is None else trust.people(difference_ND, fold_N)
    group_N = labels.group_R[pool.record_N]
    noise_G = np.array([estimate.noise.get(g, 0.5) for g in range(len(labels.names))])
    unlabelled_N = group_N == NO_PREFERENCE
    trust_N = np.where(unlabelled_N, 0.5, label_probability(people_N, noise_G[group_N]))
    weight_N, _ = choice.recipe(np.zeros(len(prompt_N), bool), factor_N, trust_N)
    found = Candidates(difference_ND, prompt_N, factor_N, margin_MN, share_M, people_N, trust_N, np.where(unlabelled_N, 0.0, weight_N))
    golden_P = pairs.golden_P
    people_P = sigmoid(share_M @ np.stack([race.margins(e, pairs.difference_PD[golden_P], pairs.fold_P[golden_P]) for e in choice.shares]))
    members = {entrant.name: share for entrant, share in choice.shares.items()}
    return found, GoldenPairs(pairs.difference_PD[golden_P], people_P), members, race.ridge


def read_pool(records: Path, labels: Labels, wanted_R: NDArray[np.bool_], most: int, seed: int) -> tuple[Pool, int]:
    """The candidate pairs of the records in ``wanted_R`` (R,), at most ``most``, and the number of further ones."""
    import numpy as np

    from dora_core.data.records import shuffle_key

    places = {position: pair for position, pair in _pairs(records, wanted_R)}
    record_N = np.fromiter(places, np.int64)
    kept = np.sort(record_N[np.argsort(shuffle_key(labels.prompt_R[record_N], seed), kind="stable")[:most]])
    texts = list(_texts(records, {int(i): places[int(i)] for i in kept}))
    prompts, first, second = ([one[k] for one in texts] for k in range(3))
    places_N2 = np.array([places[int(i)] for i in kept], np.int64).reshape(-1, 2)
    return Pool(kept, places_N2, prompts, (first, second)), len(record_N) - len(kept)


def pair_of(responses: list[str], rewards: list[float | None]) -> tuple[int, int] | None:
    """Places of the pair to compare: the first of the best responses and the last of the worst, or without a preference the first two
    different responses; None if no two responses differ."""
    measured = sorted((i for i, reward in enumerate(rewards) if reward is not None), key=lambda i: -(rewards[i] or 0.0))
    if measured and rewards[measured[0]] != rewards[measured[-1]] and responses[measured[0]] != responses[measured[-1]]:
        return measured[0], measured[-1]
    return next(((0, i) for i, response in enumerate(responses) if response != responses[0]), None)


def _pairs(records: Path, wanted_R: NDArray[np.bool_]) -> Iterator[tuple[int, tuple[int, int]]]:
    for position, row in _rows(records, ["prompt", "responses", "rewards"], wanted_R):
        pair = pair_of(row["responses"], row["rewards"])
        if pair is not None and not any(message.get("extra") for message in row["prompt"]):
            yield position, pair


def _texts(records: Path, places: dict[int, tuple[int, int]]) -> Iterator[tuple[str, str, str]]:
    import numpy as np

    from dora_core.data.encoding import plain_prompt

    wanted_R = np.zeros(max(places, default=-1) + 1, bool)
    wanted_R[list(places)] = True
    for position, row in _rows(records, ["prompt", "responses"], wanted_R):
        first, second = places[position]
        yield plain_prompt(row["prompt"]), row["responses"][first], row["responses"][second]


def _rows(records: Path, columns: list[str], wanted_R: NDArray[np.bool_]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Position and row of the train records in ``wanted_R``."""
    import numpy as np

    start = 0
    for batch in record_batches(records, columns, "train"):
        places = np.flatnonzero(wanted_R[start : start + len(batch)])
        yield from zip((start + places).tolist(), batch.take(places).to_pylist(), strict=True)
        start += len(batch)


def headline(result: StageResult[Facts]) -> str:
    return f"{result.facts.suggested} of {result.facts.candidates} pairs, of {result.facts.prompts} prompts"


STAGE = Stage(Spec, run, Facts, headline=headline)
