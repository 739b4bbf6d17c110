"""Stage ``mix``: the training records of a self-training round, from the policy's judged samples and the given data.

Input: the given records (``ingest``), and of each round that is kept its samples, scores and policy. Output: ``records.parquet``
and ``golden.parquet`` with the schemas of ``ingest`` (train split only: held-out prompts are judged apart), so every later stage reads
them as it reads given data; ``lineage.parquet``: of every sampled response its round, policy, prompt, sample number and score.

A sampled response has the source ``policy-r<round>`` (``<model>-r<round>`` where an endpoint served another model), its list the record
id ``r<round>-<record>`` and the scores as rewards. Equal responses of a prompt count once; empty responses and responses without a score
are dropped. Prompts with fewer than two responses left, or with too small a gap of scores, make no list and are counted. A hash of the
prompt selects the given records and the lists that stay: as many of each as ``given_fraction`` allows. Guarantee: the same inputs give the
same bytes. Cost: two passes over records and samples, streamed, because the draw depends on the number of lists.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from dora_core.config.rounds import MixConfig
from dora_core.errors import DataError
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.facts import Facts as BaseFacts
from tasks.runtime.spec import StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.tables.artifacts import GOLDEN_FILE, LINEAGE_FILE, RECORDS_FILE, SAMPLES_FILE, SCORES_FILE, VOTES_FILE, lineage_schema
from tasks.tables.rows import rebatch, record_batches

if TYPE_CHECKING:
    import numpy as np

READ_PROMPTS = 2048


class Spec(StageSpec):
    """See the module docstring. ``samples``, ``scores`` and ``policies`` (null: an endpoint's model) belong together; the last is of
    this ``round``, the one before it of the round before."""

    stage: ClassVar[str] = "mix"
    placement: ClassVar[Literal["job", "local"]] = "local"

    records: StageRef
    samples: list[StageRef] = Field(min_length=1)
    scores: list[StageRef]
    policies: list[StageRef | None]
    round: int = Field(ge=1)
    mix: MixConfig
    golden_sources: list[str]

    @model_validator(mode="after")
    def _check(self) -> Spec:
        if not len(self.samples) == len(self.scores) == len(self.policies) <= self.round:
            raise ValueError("one samples, one scores and one policy stage for each round that is mixed in")
        return self

    def rounds(self) -> range:
        return range(self.round - len(self.samples) + 1, self.round + 1)


class Facts(BaseFacts):
    """Composition of the round's records."""

    round: int
    given: int = Field(description="Given records that stayed.")
    lists: int = Field(description="Lists of samples.")
    no_list: dict[str, int] = Field(description="Prompts without a list, by reason.")
    golden_share: float = Field(description="Of the responses.")
    sources: dict[str, int] = Field(description="Responses by source.")


@dataclass(frozen=True)
class SampledList:
    """The list made of one prompt's samples: texts and scores, best first, their sample numbers, and the probability that the best is
    better than the worst (None: not asked for, or not compared)."""

    record_id: str
    prompt_hash: int
    responses: list[str]
    scores: list[float]
    samples: list[int]
    label_probability: float | None = None


def rank(responses: list[str], scores: list[float | None], config: MixConfig, rng: np.random.Generator) -> list[int] | str:
    """Positions of the samples that make a prompt's list, best first; or the reason why they make none.

    ``best_of_k`` takes the best and one of the others at random: the winner of K draws against an ordinary one.
    """
    best_first: list[int] = []
    seen: set[str] = set()
    known = {i: score for i, score in enumerate(scores) if score is not None}
    for index in sorted(known, key=lambda i: (-known[i], i)):
        if responses[index].strip() and responses[index] not in seen:
            best_first.append(index)
            seen.add(responses[index])
    if len(best_first) < 2:
        return "fewer than two different scored responses"
    best, worst = best_first[0], best_first[-1]
    if known[best] - known[worst] <= config.min_score_gap:
        return "scores too close"
    if config.lists == "full":
        return best_first
    return [best, worst if config.lists == "top_bottom" else best_first[1 + int(rng.integers(len(best_first) - 1))]]


def sampled_lists(spec: Spec, context: StageContext, place: int, reasons: Counter[str]) -> Iterator[SampledList]:
    """Lists of one round, in the order of the samples, which is the order of the records; records with the same prompt share one list."""
    import numpy as np
    import pyarrow.parquet as pq

    samples = context.fetch(spec.samples[place]) / SAMPLES_FILE
    score_S = pq.read_table(context.fetch(spec.scores[place]) / SCORES_FILE, columns=["score"])["score"].combine_chunks()
    per_prompt = context.result(spec.samples[place])["spec"]["generate"]["samples"]
    votes = None if spec.mix.vote_prior is None else read_votes(context.fetch(spec.scores[place]) / VOTES_FILE)
    seen: set[int] = set()
    start = 0
    for table in rebatch(record_batches(samples, ["record_id", "prompt_hash", "response"]), per_prompt * READ_PROMPTS):
        rows = table.to_pydict() | {"score": score_S.slice(start, len(table)).to_pylist()}
        for first in range(0, len(table), per_prompt):
            key, responses, scores = rows["prompt_hash"][first], *(rows[n][first : first + per_prompt] for n in ("response", "score"))
            if key in seen:
                continue
            seen.add(key)
            chosen = rank(responses, scores, spec.mix, np.random.default_rng([spec.mix.seed, key]))
            if isinstance(chosen, str):
                reasons[chosen] += 1
            else:
                record = rows["record_id"][first]
                q = None if votes is None else probability_of(votes.get(record, ()), chosen[0], chosen[-1], spec.mix.vote_prior)
                yield SampledList(record, key, [responses[i] for i in chosen], [scores[i] for i in chosen], chosen, q)
        start += len(table)


Votes = tuple[int, int, str | None, str | None]
"""Two sample numbers, and which of them is preferred in either order."""


def read_votes(file: Path) -> dict[str, list[Votes]]:
    """Verdicts of a judge that compares samples with each other, by record; some hundred bytes a pair."""
    import pyarrow.parquet as pq

    found: dict[str, list[Votes]] = {}
    for row in pq.read_table(file).to_pylist():
        found.setdefault(row["record_id"], []).append((row["first"], row["second"], row["verdict"], row["swapped_verdict"]))
    return found


def probability_of(votes: Iterable[Votes], best: int, worst: int, prior: float | None) -> float | None:
    """Probability that sample ``best`` is better than ``worst``; None where no verdict says."""
    from dora_core.data.adapter.votes import label_probability

    assert prior is not None
    shares = list[float]()
    for first, second, *verdicts in votes:
        if {first, second} == {best, worst}:
            shares += [0.5 if v == "tie" else float((v == "first") == (first == best)) for v in verdicts if v is not None]
    return label_probability(sum(shares), len(shares), prior)


def run(spec: Spec, context: StageContext) -> StageOutput:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dora_core.data.records import is_golden_source

    base, reasons, sources = context.fetch(spec.records), Counter[str](), Counter[str | None]()
    schema = pq.read_schema(base / RECORDS_FILE)
    quotas = draw(spec, context, base / RECORDS_FILE, reasons)
    streams = [_Lookahead(sampled_lists(spec, context, place, Counter())) for place in range(len(spec.samples))]
    writers = [context.result(ref)["spec"]["generate"]["served_model"] or "policy" for ref in spec.samples]
    position = given = lists = 0
    with (
        pq.ParquetWriter(context.path / RECORDS_FILE, schema, compression="zstd") as records,
        pq.ParquetWriter(context.path / LINEAGE_FILE, lineage_schema(), compression="zstd") as lineage,
    ):
        for batch in record_batches(base / RECORDS_FILE, schema.names, "train"):
            rows, origins = list[dict[str, Any]](), list[dict[str, Any]]()
            for record in batch.to_pylist():
                if position in quotas.given:
                    rows.append(record)
                    given += 1
                position += 1
                for place, (number, stream) in enumerate(zip(spec.rounds(), streams, strict=True)):
                    sampled = stream.take(record["record_id"])
                    if sampled is not None and (number, sampled.prompt_hash) in quotas.lists:
                        rows.append(to_record(record, sampled, number, f"{writers[place]}-r{number}"))
                        origins += to_lineage(rows[-1]["record_id"], sampled, number, spec, place)
                        lists += 1
            sources.update(source for row in rows for source in row["sources"])
            records.write_table(pa.Table.from_pylist(rows, schema=schema))
            lineage.write_table(pa.Table.from_pylist(origins, schema=lineage_schema()))
            context.progress(position, quotas.records, "records")
    shutil.copyfile(base / GOLDEN_FILE, context.path / GOLDEN_FILE)

    responses = sources.total()
    golden = sum(count for name, count in sources.items() if is_golden_source(name, spec.golden_sources))
    facts = Facts(
        round=spec.round,
        given=given,
        lists=lists,
        no_list=dict(sorted(reasons.items())),
        golden_share=golden / responses if responses else 0.0,
        sources={name or "(unknown)": count for name, count in sorted(sources.items(), key=lambda item: item[0] or "")},
    )
    metrics = {"records": given + lists, "given": given, "lists": lists, "no_list": reasons.total(), "golden_share": facts.golden_share}
    return StageOutput(rows=given + lists, metrics=metrics, facts=facts)


@dataclass(frozen=True)
class Quotas:
    """Content of the mixture: positions of given train records, (round, prompt_hash) of lists; and the number of all train records."""

    given: set[int]
    lists: set[tuple[int, int]]
    records: int


def draw(spec: Spec, context: StageContext, records: Path, reasons: Counter[str]) -> Quotas:
    """Draw as many given records and lists as ``given_fraction`` allows, by hash of the prompt.

    Raises:
        DataError: neither a list nor a given record would be left.
    """
    import numpy as np

    from dora_core.data.records import is_golden_source, shuffle_key

    hashes, allowed = list[int](), list[bool]()
    for batch in record_batches(records, ["prompt_hash", "sources"], "train"):
        hashes += batch["prompt_hash"].to_pylist()
        golden = (any(is_golden_source(s, spec.golden_sources) for s in sources) for sources in batch["sources"].to_pylist())
        allowed += [spec.mix.given == "all" or is_golden for is_golden in golden]
    pool = np.flatnonzero(allowed)
    made = [(number, one.prompt_hash) for place, number in enumerate(spec.rounds()) for one in sampled_lists(spec, context, place, reasons)]
    fraction = spec.mix.given_fraction
    given = min(len(pool), round(fraction / (1 - fraction) * len(made)))
    lists = len(made) if fraction == 0 else min(len(made), round((1 - fraction) / fraction * given))
    if given + lists == 0:
        why = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
        raise DataError(
            f"round {spec.round} has nothing to learn from: no prompt's samples make a list ({why})",
            hint="sample with a higher generate.temperature or more generate.samples, or lower rounds.mix.min_score_gap",
        )
    seed = spec.mix.seed + spec.round
    given_order = np.argsort(shuffle_key(np.array(hashes, dtype=np.uint64)[pool], seed), kind="stable")
    list_order = np.argsort(shuffle_key(np.array([key for _, key in made], dtype=np.uint64), seed), kind="stable")
    return Quotas(set(pool[given_order[:given]].tolist()), {made[i] for i in list_order[:lists]}, len(hashes))


class _Lookahead:
    """Stream of lists, read in step with the records."""

    def __init__(self, lists: Iterator[SampledList]):
        self._lists = lists
        self._next = next(lists, None)

    def take(self, record_id: str) -> SampledList | None:
        """The list of this record, if it has one."""
        if self._next is None or self._next.record_id != record_id:
            return None
        found, self._next = self._next, next(self._lists, None)
        return found


def to_record(record: dict[str, Any], sampled: SampledList, number: int, source: str) -> dict[str, Any]:
    """A row of ``records.parquet`` for the samples of ``record``'s prompt."""
    return record | {
        "record_id": f"r{number}-{record['record_id']}",
        "responses": sampled.responses,
        "rewards": sampled.scores,
        "sources": [source] * len(sampled.responses),
        "reward_kind": "reward",
        "weight": None,
        "extra": None,
        "label_probability": sampled.label_probability,
    }


def to_lineage(record_id: str, sampled: SampledList, number: int, spec: Spec, place: int) -> list[dict[str, Any]]:
    origin = {"record_id": record_id, "round": number, "prompt_hash": sampled.prompt_hash}
    policy = spec.policies[place]
    origin |= {"policy": policy and policy.digest, "samples": spec.samples[place].digest, "judge": spec.scores[place].digest}
    drawn = enumerate(zip(sampled.samples, sampled.scores, strict=True))
    return [origin | {"response_index": index, "sample": sample, "score": score} for index, (sample, score) in drawn]


def headline(result: StageResult[Facts]) -> str:
    return f"{result.facts.lists} sampled lists, {result.facts.given} given records"


STAGE = Stage(Spec, run, Facts, headline=headline, tracked=("golden_share", "lists"))
