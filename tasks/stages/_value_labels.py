"""Labels of a mixture for the stage ``value``: the source of every record's label, pairs for the proxy, and pairs labelled twice.

A label's source is the record's annotator or judge where a carried column names it, else that of its measured responses: golden if all
are, the one other source if there is one, else :data:`SEVERAL`.

Shape legend: R train records, P pairs, D features.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dora_core.data.records import is_golden_source
from dora_core.data.unpaired import LABEL
from tasks.tables.preference_export import Factors
from tasks.tables.rows import record_batches, row_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dora_core.selection.features import TextFeatures
    from dora_core.selection.proxy import ProxyPairs
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
        group_R: position in ``names``; :data:`NO_PREFERENCE` where no two responses have different rewards.
        prompt_R: uint64 hash.
        factor_R: the record's h, 1 without factors.
        ids: record ids.
    """

    names: list[str]
    group_R: NDArray[np.int32]
    prompt_R: NDArray[np.uint64]
    factor_R: NDArray[np.float64]
    ids: list[str]

    def sample(self, most: int, seed: int) -> NDArray[np.int64]:
        """Positions, ascending, of at most ``most`` labelled records per group, those of the smallest hashes of the prompt."""
        from dora_core.data.records import shuffle_key

        key_R = shuffle_key(self.prompt_R, seed)
        chosen = [self._of(group)[np.argsort(key_R[self._of(group)], kind="stable")[:most]] for group in range(len(self.names))]
        return np.sort(np.concatenate(chosen))

    def _of(self, group: int) -> NDArray[np.int64]:
        return np.flatnonzero(self.group_R == group)

    def count(self, group: int) -> int:
        return int((self.group_R == group).sum())

    def prompts(self, group: int) -> int:
        return len(np.unique(self.prompt_R[self.group_R == group]))


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
    from tasks.tables.preference_export import record_factor

    names, prompts, ids, h = list[str | None](), list[Any](), list[str](), list[float]()
    reader = None if factors is None else Factors(factors)
    columns = ["record_id", "rewards", "sources", "reward_kind", "prompt_hash", "extra"]
    for batch in record_batches(records, columns, "train"):
        prompts.append(batch["prompt_hash"].to_numpy())
        for row in batch.to_pylist():
            of_responses = None if reader is None else reader.take(row["record_id"], len(row["rewards"]))
            h.append(1.0 if of_responses is None else record_factor(of_responses, row["rewards"], aggregate))
            names.append(label_source(row, golden, labeller) if has_preference(row) else None)
            ids.append(row["record_id"])
    groups, pooled = _groups(Counter(name for name in names if name not in (None, GOLDEN)), most_sources)
    code: dict[str | None, int] = {name: i for i, name in enumerate(groups)}
    code |= {name: groups.index(OTHERS) for name in pooled} | {None: NO_PREFERENCE}
    group = np.array([code[name] for name in names], dtype=np.int32)
    return Labels(groups, group, np.concatenate(prompts or [np.empty(0, np.uint64)]), np.array(h), ids)


def _groups(counts: Mapping[str | None, int], most: int) -> tuple[list[str], set[str]]:
    """Names of groups, golden first, then by number of labels; and the names that are pooled."""
    ordered = sorted((str(name) for name in counts), key=lambda name: (-counts[name], name))
    large = [name for name in ordered if counts[name] >= LEAST_LABELS]
    kept = large if len(large) <= most else large[: most - 1]
    pooled = set(ordered) - set(kept)
    return [GOLDEN, *kept, *([OTHERS] if pooled else [])], pooled


def has_preference(row: Mapping[str, Any]) -> bool:
    """Whether two responses have different measured rewards; an unpaired record has one response."""
    measured = {reward for reward in row["rewards"] if reward is not None}
    return row["reward_kind"] != LABEL and len(measured) > 1


def label_source(row: Mapping[str, Any], golden: Sequence[str], labeller: str | None) -> str:
    """Name of the source of a record's label; see the module docstring."""
    if labeller is not None and row["extra"] is not None and (named := json.loads(row["extra"]).get(labeller)) is not None:
        return GOLDEN if is_golden_source(str(named), golden) else str(named)
    measured = [source for source, reward in zip(row["sources"], row["rewards"], strict=True) if reward is not None]
    others = {UNNAMED if source is None else source for source in measured if not is_golden_source(source, golden)}
    return GOLDEN if not others else others.pop() if len(others) == 1 else SEVERAL


# --------------------------------------------------------------------------------------------------------------- pairs


@dataclass(frozen=True)
class Texts:
    """Responses of some records that take part in pairs, and the pairs as positions among them.

    Attributes:
        record_P: position of the pair's record among all train records.
        first_P: whether the pair is the best against the worst of its record.
    """

    prompts: list[str]
    responses: list[str]
    winner_P: NDArray[np.int64]
    loser_P: NDArray[np.int64]
    record_P: NDArray[np.int64]
    first_P: NDArray[np.bool_]


def read_texts(records: Path, wanted_R: NDArray[np.bool_], limit: int = LIST_LIMIT) -> Iterator[Texts]:
    """Pairs of the train records in ``wanted_R`` (R,), batch by batch, at most ``limit`` responses of a record; best-worst comes first."""
    from dora_core.data.encoding import plain_prompt
    from dora_core.training.alignment_data import choose_responses

    start = 0
    for batch in record_batches(records, ["prompt", "responses", "rewards"], "train"):
        places = np.flatnonzero(wanted_R[start : start + len(batch)])
        prompts, responses, pairs = list[str](), list[str](), list[tuple[int, int, int, bool]]()
        for place, row in zip(places.tolist(), batch.take(places).to_pylist(), strict=True):
            rewards = [float("nan") if reward is None else reward for reward in row["rewards"]]
            chosen = choose_responses(rewards, limit)
            at = len(responses)
            prompts += [plain_prompt(row["prompt"])] * len(chosen)
            responses += [row["responses"][i] for i in chosen]
            last = len(chosen) - 1
            strict = [(i, j) for i in range(last + 1) for j in range(i + 1, last + 1) if rewards[chosen[i]] > rewards[chosen[j]]]
            pairs += [(at + i, at + j, start + place, (i, j) == (0, last)) for i, j in strict]
        start += len(batch)
        if pairs:
            winner, loser, record, first = zip(*pairs, strict=True)
            yield Texts(prompts, responses, np.array(winner), np.array(loser), np.array(record), np.array(first))


def proxy_pairs(records: Path, labels: Labels, chosen: NDArray[np.int64], folds: int, buckets: int) -> tuple[ProxyPairs, TextFeatures, Any]:
    """Pairs of the records at ``chosen``, the features they are made of, and each pair's record."""
    from dora_core.data.records import fold_of
    from dora_core.selection.features import TextFeatures
    from dora_core.selection.proxy import ProxyPairs

    wanted = np.zeros(len(labels.group_R), dtype=bool)
    wanted[chosen] = True
    parts = list(read_texts(records, wanted))
    prompts, responses = [p for part in parts for p in part.prompts], [r for part in parts for r in part.responses]
    features = TextFeatures.fit(prompts, responses, buckets)
    difference = np.concatenate([_differences(features, part) for part in parts])
    record = np.concatenate([part.record_P for part in parts])
    weight = 1.0 / np.bincount(record)[record]
    prompt = labels.prompt_R[record]
    return ProxyPairs(difference, labels.group_R[record], prompt, fold_of(prompt, folds), weight), features, record


def _differences(features: TextFeatures, texts: Texts) -> NDArray[np.float64]:
    values = features(texts.prompts, texts.responses)
    difference: NDArray[np.float64] = values[texts.winner_P] - values[texts.loser_P]
    return difference


def label_pairs(records: Path, labels: Labels, features: TextFeatures) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Record positions and feature differences of the best-worst pair of every labelled record, batch by batch."""
    for texts in read_texts(records, labels.group_R != NO_PREFERENCE, limit=2):
        yield texts.record_P, _differences(features, texts)


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
    golden = np.unique(labels.prompt_R[labels.group_R == 0])
    others = np.unique(labels.prompt_R[labels.group_R > 0])
    both = np.isin(labels.prompt_R, np.intersect1d(golden, others)) & (labels.group_R != NO_PREFERENCE)
    agrees, prompts, right = dict[int, list[bool]](), dict[int, list[int]](), dict[int, bool]()
    if both.any():
        pairs = list(_keyed_pairs(records, labels, both))
        votes: dict[tuple[int, int], int] = {}
        for record, key, sign, _ in pairs:
            if labels.group_R[record] == 0:
                votes[key] = votes.get(key, 0) + sign
        for record, key, sign, first in pairs:
            group = int(labels.group_R[record])
            if group > 0 and votes.get(key, 0) != 0:
                same = (votes[key] > 0) == (sign > 0)
                agrees.setdefault(group, []).append(same)
                prompts.setdefault(group, []).append(int(labels.prompt_R[record]))
                if first:
                    right[record] = same
    return Overlap({g: np.array(v) for g, v in agrees.items()}, {g: np.array(v, np.uint64) for g, v in prompts.items()}, right)


def _keyed_pairs(records: Path, labels: Labels, wanted: NDArray[np.bool_]) -> Iterator[tuple[int, tuple[int, int], int, bool]]:
    """(record, identity of the two responses, +1 if the smaller key is preferred else −1, best against worst) of every pair."""
    import pyarrow as pa

    for texts in read_texts(records, wanted):
        hashes = np.zeros(len(texts.responses), dtype=np.uint64)
        for side in (texts.winner_P, texts.loser_P):
            hashes[side] = labels.prompt_R[texts.record_P]
        keys = row_keys(hashes, pa.array(texts.responses, pa.large_string()))
        for winner, loser, record, first in zip(texts.winner_P, texts.loser_P, texts.record_P, texts.first_P, strict=True):
            a, b = int(keys[winner]), int(keys[loser])
            yield int(record), (min(a, b), max(a, b)), 1 if a < b else -1, bool(first)
