"""Labels of a mixture for the stage ``value``: the source of every label, pairs for the proxy, and pairs labelled twice.

The label of a pair of responses comes from the record's annotator or judge where a carried column names it, else from the source of the
responses: golden if both are, the other source if one or both are of it, else :data:`SEVERAL`. A record's label is that of its best
response against its worst.

Shape legend: R train records, P pairs, D features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dora_core.data.records import carried_text, is_golden_source
from dora_core.data.unpaired import LABEL
from tasks.tables.rows import record_batches, row_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dora_core.config.valuation import ExchangeConfig, FeatureKind
    from dora_core.selection.proxy import ProxyPairs
    from tasks.stages._policy_vectors import Vectors
    from tasks.tables.training_records import Aggregate

GOLDEN, SEVERAL, UNNAMED, OTHERS = "golden", "several sources", "no source", "other sources"
LEAST_LABELS = 30
"""Sources with fewer labels are pooled: nothing can be said about them alone."""
LIST_LIMIT = 4
"""Responses of a longer list that make pairs: best, worst, and evenly spaced ranks between."""
NO_PREFERENCE = -1


@dataclass(frozen=True)
class Labels:
    """Labels of the train records, in their order.

    Attributes:
        names: of groups; the first is :data:`GOLDEN`.
        group_R: group of the record's label; :data:`NO_PREFERENCE` where no two responses have different rewards.
        golden_R: whether a strict pair of the record has a golden label.
        prompt_R: uint64 hash.
        factor_R: the record's h, 1 without factors.
        ids: record ids.
        source_N, start_R: groups of the responses of all records one after another, and the place of each record's first.
    """

    names: list[str]
    group_R: NDArray[np.int32]
    golden_R: NDArray[np.bool_]
    prompt_R: NDArray[np.uint64]
    factor_R: NDArray[np.float64]
    ids: list[str]
    source_N: NDArray[np.int32]
    start_R: NDArray[np.int64]

    def sample(self, most: int, seed: int) -> NDArray[np.int64]:
        """Positions, ascending, of at most ``most`` records per group and as many with a golden pair: the smallest hashes of the prompt."""
        from dora_core.data.records import shuffle_key

        key_R = shuffle_key(self.prompt_R, seed)
        kinds = [self.golden_R, *(self.group_R == group for group in range(len(self.names)))]
        chosen = [np.flatnonzero(kind)[np.argsort(key_R[kind], kind="stable")[:most]] for kind in kinds]
        return np.unique(np.concatenate(chosen))

    def pair_groups(self, record_P: NDArray[np.int64], first_P: NDArray[np.int64], second_P: NDArray[np.int64]) -> NDArray[np.int32]:
        """Group of the label of pairs, given as a record and the places of two of its responses."""
        at_P = self.start_R[record_P]
        return _group_of_pair(
            self.source_N[at_P + first_P], self.source_N[at_P + second_P], self.names.index(SEVERAL) if SEVERAL in self.names else 0
        )

    def count(self, group: int) -> int:
        """Records with a label of the group; with a golden pair, for golden."""
        return int((self.golden_R if group == 0 else self.group_R == group).sum())

    @property
    def golden_prompts(self) -> int:
        return len(np.unique(self.prompt_R[self.golden_R]))


def _group_of_pair(a: Any, b: Any, several: int) -> NDArray[np.int32]:
    group: NDArray[np.int32] = np.where(a == 0, b, np.where((b == 0) | (a == b), a, several)).astype(np.int32)
    return group


def read_labels(
    records: Path, factors: Path | None, aggregate: Aggregate, golden: Sequence[str], labeller: str | None, most_sources: int
) -> Labels:
    """Read the labels of the train split.

    Args:
        factors: ``calibration.parquet``; None: h = 1.
        golden: patterns of golden names.
        labeller: carried column with the name of a label's annotator or judge.
        most_sources: groups beside golden; smaller ones are pooled as :data:`OTHERS`.
    """
    from tasks.tables.preference_export import Factors, record_factor

    prompts, ids, h = [np.empty(0, np.uint64)], list[str](), list[float]()
    named, labels, has_golden = list[list[str]](), list[str | None](), list[bool]()
    reader = None if factors is None else Factors(factors)
    columns = ["record_id", "rewards", "sources", "reward_kind", "prompt_hash", "extra"]
    for batch in record_batches(records, columns, "train"):
        prompts.append(batch["prompt_hash"].to_numpy())
        for row in batch.to_pylist():
            of_responses = None if reader is None else reader.take(row["record_id"], len(row["rewards"]))
            h.append(1.0 if of_responses is None else record_factor(of_responses, row["rewards"], aggregate))
            named.append(label_sources(row, golden, labeller))
            label, golden_pair = label_of(row, named[-1])
            labels.append(label)
            has_golden.append(golden_pair)
            ids.append(row["record_id"])
    groups, pooled = _groups(Counter(name for name in labels if name not in (None, GOLDEN)), most_sources)
    code = {name: i for i, name in enumerate(groups)} | dict.fromkeys(pooled, groups.index(OTHERS) if pooled else 0)
    flat = [code.get(name, groups.index(OTHERS) if OTHERS in groups else NO_PREFERENCE) for of_record in named for name in of_record]
    lengths = np.array([len(of_record) for of_record in named], dtype=np.int64)
    return Labels(
        names=groups,
        group_R=np.array([NO_PREFERENCE if label is None else code[label] for label in labels], dtype=np.int32),
        golden_R=np.array(has_golden, dtype=bool),
        prompt_R=np.concatenate(prompts),
        factor_R=np.array(h),
        ids=ids,
        source_N=np.array(flat, dtype=np.int32),
        start_R=np.cumsum(lengths) - lengths,
    )


def _groups(counts: Mapping[str | None, int], most: int) -> tuple[list[str], set[str]]:
    """Names of groups, golden first, then by number of labels; and the names that are pooled."""
    ordered = sorted((str(name) for name in counts), key=lambda name: (-counts[name], name))
    large = [name for name in ordered if counts[name] >= LEAST_LABELS]
    kept = large if len(large) <= most else large[: most - 1]
    pooled = set(ordered) - set(kept)
    return [GOLDEN, *kept, *([OTHERS] if pooled else [])], pooled


def label_sources(row: Mapping[str, Any], golden: Sequence[str], labeller: str | None) -> list[str]:
    """Source of labels, by response: :data:`GOLDEN`, its own source, or for all the record's annotator."""
    if labeller is not None and (named := carried_text(row["extra"], labeller)) is not None:
        return [GOLDEN if is_golden_source(named, golden) else named] * len(row["sources"])
    return [UNNAMED if source is None else GOLDEN if is_golden_source(source, golden) else source for source in row["sources"]]


def label_of(row: Mapping[str, Any], sources: Sequence[str]) -> tuple[str | None, bool]:
    """Source of a record's label, the first of the best responses against the last of the worst (None without a preference), and whether
    any of its strict pairs has a golden label."""
    measured = [place for place, reward in enumerate(row["rewards"]) if reward is not None]
    ranked = sorted(measured, key=lambda place: -row["rewards"][place])
    if row["reward_kind"] == LABEL or not ranked or row["rewards"][ranked[0]] == row["rewards"][ranked[-1]]:
        return None, False
    golden = {row["rewards"][place] for place in measured if sources[place] == GOLDEN}
    ends = {sources[ranked[0]], sources[ranked[-1]]} - {GOLDEN}
    return GOLDEN if not ends else ends.pop() if len(ends) == 1 else SEVERAL, len(golden) > 1


# --------------------------------------------------------------------------------------------------------------- pairs


@dataclass(frozen=True)
class Texts:
    """Responses of some records that take part in pairs, and the pairs as positions among them.

    Attributes:
        record_N, place_N: each response's record among all train records, and its place there.
        record_P: position of the pair's record among all train records.
        places_P2: places of the preferred and the other response in the record.
        first_P: whether the pair is the best against the worst of its record.
    """

    prompts: list[str]
    responses: list[str]
    record_N: NDArray[np.int64]
    place_N: NDArray[np.int64]
    winner_P: NDArray[np.int64]
    loser_P: NDArray[np.int64]
    record_P: NDArray[np.int64]
    places_P2: NDArray[np.int64]
    first_P: NDArray[np.bool_]


def read_texts(records: Path, wanted_R: NDArray[np.bool_], limit: int = LIST_LIMIT) -> Iterator[Texts]:
    """Pairs of the train records in ``wanted_R`` (R,), batch by batch, at most ``limit`` responses of a record; best-worst comes first."""
    from dora_core.data.encoding import plain_prompt
    from dora_core.data.response_turns import readable
    from dora_core.training.alignment_data import choose_responses

    start = 0
    for batch in record_batches(records, ["prompt", "responses", "rewards"], "train"):
        places = np.flatnonzero(wanted_R[start : start + len(batch)])
        prompts, responses, pairs = list[str](), list[str](), list[tuple[int, int, int, tuple[int, int], bool]]()
        at_N = list[tuple[int, int]]()
        for place, row in zip(places.tolist(), batch.take(places).to_pylist(), strict=True):
            rewards = [float("nan") if reward is None else reward for reward in row["rewards"]]
            chosen = choose_responses(rewards, limit)
            at = len(responses)
            prompts += [plain_prompt(row["prompt"])] * len(chosen)
            responses += [readable(row["responses"][i]) for i in chosen]
            at_N += [(start + place, i) for i in chosen]
            last = len(chosen) - 1
            strict = [(i, j) for i in range(last + 1) for j in range(i + 1, last + 1) if rewards[chosen[i]] > rewards[chosen[j]]]
            pairs += [(at + i, at + j, start + place, (chosen[i], chosen[j]), (i, j) == (0, last)) for i, j in strict]
        start += len(batch)
        if pairs:
            columns = [np.array(column) for column in zip(*pairs, strict=True)]
            yield Texts(prompts, responses, *np.array(at_N).T, *columns)


class PairFeatures:
    """Features of texts, of which the proxy's pairs are differences: of the texts themselves, of the policy's vectors, or both."""

    def __init__(self, parts: Sequence[Texts], buckets: int, kind: FeatureKind, vectors: Vectors | None):
        from dora_core.selection.features import PolicyFeatures, TextFeatures

        prompts, responses = [p for part in parts for p in part.prompts], [r for part in parts for r in part.responses]
        self.text = TextFeatures.fit(prompts, responses, buckets) if kind != "policy" else None
        self._vectors, self._policy = vectors, None
        if vectors is not None:
            record_N, place_N = (np.concatenate([getattr(part, name) for part in parts]) for name in ("record_N", "place_N"))
            self._policy = PolicyFeatures.fit(vectors.of(record_N, place_N))

    def differences(self, texts: Texts) -> NDArray[np.float64]:
        """Features of each pair's preferred response minus those of the other, (P, D)."""
        found = [] if self.text is None else [self.text(texts.prompts, texts.responses)]
        if self._policy is not None and self._vectors is not None:
            found.append(self._policy(self._vectors.of(texts.record_N, texts.place_N)))
        values = np.concatenate(found, axis=1)
        difference: NDArray[np.float64] = values[texts.winner_P] - values[texts.loser_P]
        return difference


def proxy_pairs(
    records: Path, labels: Labels, chosen: NDArray[np.int64], exchange: ExchangeConfig, vectors: Vectors | None = None
) -> tuple[ProxyPairs, PairFeatures, Any]:
    """Pairs of the records at ``chosen``, the features they are made of, and each pair's record.

    Args:
        vectors: of the policy, for ``exchange.features`` other than text.
    """
    from dora_core.data.records import fold_of
    from dora_core.selection.proxy import ProxyPairs

    wanted = np.zeros(len(labels.group_R), dtype=bool)
    wanted[chosen] = True
    parts = list(read_texts(records, wanted))
    features = PairFeatures(parts, exchange.buckets, exchange.features, vectors)
    difference = np.concatenate([features.differences(part) for part in parts])
    record = np.concatenate([part.record_P for part in parts])
    weight = 1.0 / np.bincount(record)[record]
    prompt = labels.prompt_R[record]
    group = np.concatenate([labels.pair_groups(part.record_P, *part.places_P2.T) for part in parts])
    return ProxyPairs(difference, group, prompt, fold_of(prompt, exchange.folds), weight), features, record


def label_pairs(records: Path, labels: Labels, features: PairFeatures) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Record positions and feature differences of the best-worst pair of every labelled record, batch by batch."""
    for texts in read_texts(records, labels.group_R != NO_PREFERENCE, limit=2):
        yield texts.record_P, features.differences(texts)


# ------------------------------------------------------------------------------------------------------------- overlap


@dataclass(frozen=True)
class Overlap:
    """Labels of sources on pairs that have a golden label too.

    Attributes:
        agrees, prompts: by group: one entry per pair of a record's.
        right: record position → whether its best-worst pair has the golden label.
    """

    agrees: dict[int, NDArray[np.bool_]]
    prompts: dict[int, NDArray[np.uint64]]
    right: dict[int, bool]


def find_overlap(records: Path, labels: Labels) -> Overlap:
    """Compare labels of the same two responses to the same prompt. A pair that golden labels order both ways has no golden label."""
    _, prompt_R, records_K = np.unique(labels.prompt_R, return_inverse=True, return_counts=True)
    golden_K = np.bincount(prompt_R, labels.golden_R) > 0
    twice_R = ((records_K > 1) & golden_K)[prompt_R] & (labels.group_R != NO_PREFERENCE)
    agrees, prompts, right = dict[int, list[bool]](), dict[int, list[int]](), dict[int, bool]()
    pairs = list(_keyed_pairs(records, labels, twice_R)) if twice_R.any() else []
    votes: dict[tuple[int, int], int] = {}
    for _, group, key, sign, _ in pairs:
        if group == 0:
            votes[key] = votes.get(key, 0) + sign
    for record, group, key, sign, first in pairs:
        if group > 0 and votes.get(key, 0) != 0:
            same = (votes[key] > 0) == (sign > 0)
            agrees.setdefault(group, []).append(same)
            prompts.setdefault(group, []).append(int(labels.prompt_R[record]))
            if first:
                right[record] = same
    return Overlap({g: np.array(v) for g, v in agrees.items()}, {g: np.array(v, np.uint64) for g, v in prompts.items()}, right)


def _keyed_pairs(records: Path, labels: Labels, wanted: NDArray[np.bool_]) -> Iterator[tuple[int, int, tuple[int, int], int, bool]]:
    """(record, group, identity of the two responses, +1 if the smaller key is preferred else −1, best against worst) of every pair."""
    import pyarrow as pa

    for texts in read_texts(records, wanted):
        hashes = np.zeros(len(texts.responses), dtype=np.uint64)
        for side in (texts.winner_P, texts.loser_P):
            hashes[side] = labels.prompt_R[texts.record_P]
        keys = row_keys(hashes, pa.array(texts.responses, pa.large_string()))
        group_P = labels.pair_groups(texts.record_P, *texts.places_P2.T)
        columns = (texts.winner_P, texts.loser_P, texts.record_P, group_P, texts.first_P)
        for winner, loser, record, group, first in zip(*columns, strict=True):
            a, b = int(keys[winner]), int(keys[loser])
            yield int(record), int(group), (min(a, b), max(a, b)), 1 if a < b else -1, bool(first)
