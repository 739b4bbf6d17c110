"""Canonical records as rows for other trainers: pairs, single responses, or whole records, with h and weights. Streamed.

Ties and responses without a reward never become a preference. The weights of one record's pairs, or of its single responses, sum to its
own weight times its h, so that a record counts once however many pairs it has (``align.loss.pairs: all`` weighs them the same).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dora_core.calibration import aggregate as aggregate_factors
from dora_core.data.encoding import chat_turns
from dora_core.data.response_turns import split_turns
from dora_core.errors import DataError
from tasks.tables.rows import record_batches
from tasks.tables.training_records import Aggregate

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["trl-pairs", "trl-unpaired", "records"]
Pairs = Literal["best_worst", "all"]


class Factors:
    """h of the responses of train records, read along with them: ``calibration.parquet`` has their order."""

    def __init__(self, path: Path):
        self._path = path
        self._rows = self._read()

    def _read(self) -> Iterator[tuple[str, float]]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(columns=["record_id", "h"]):
                yield from zip(batch["record_id"].to_pylist(), batch["h"].to_pylist(), strict=True)

    def take(self, record_id: str, responses: int) -> list[float]:
        """h of the next record's responses.

        Raises:
            DataError: the table is of other records.
        """
        found = [next(self._rows, ("nothing", 0.0)) for _ in range(responses)]
        if any(name != record_id for name, _ in found):
            raise DataError(
                f"{self._path} does not go with the records: {found[0][0]} where {record_id} is expected",
                hint="it was computed for other records; export again after `dora calibrate`",
            )
        return [h for _, h in found]


def export_rows(
    records: Path,
    factors: Path | None,
    form: Format,
    counts: Counter[str],
    *,
    pairs: Pairs = "all",
    split: Literal["train", "eval", "both"] = "both",
    aggregate: Aggregate = "mean",
) -> Iterator[dict[str, Any]]:
    """Rows of one form, in the order of the records; ``counts`` is complete afterwards.

    Args:
        records: ``records.parquet``.
        factors: ``calibration.parquet``, for train records; None: h is null.
        counts: gets ``records``, ``rows``, ``tied pairs``, ``responses without a reward`` and ``records without a preference``.
        aggregate: how a record's h follows from its responses'.

    Raises:
        DataError: the factors are of other records.
    """
    reader = None if factors is None else Factors(factors)
    for batch in record_batches(records, _columns(records)):
        for record in batch.to_pylist():
            h = reader.take(record["record_id"], len(record["responses"])) if reader and record["split"] == "train" else None
            if split not in ("both", record["split"]):
                continue
            counts["records"] += 1
            written = list(_rows_of(record, h, form, pairs, aggregate, counts))
            counts["rows"] += len(written)
            yield from written


def export_schema(records: Path, form: Format) -> pa.Schema:
    """Arrow schema of the rows; null columns of a batch would else have no type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    own = pq.read_schema(records)
    texts, number = pa.string(), pa.float64()
    answer = pa.list_(pa.struct([("role", texts), ("content", texts)]))
    about = [("record_id", texts), ("split", texts), ("task", texts), ("tools", texts)]
    if form == "records":
        kept = [(name, own.field(name).type) for name in _columns(records) if name != "weight"]
        return pa.schema([*kept, ("h", pa.list_(number)), ("weight", number)])
    if form == "trl-pairs":
        each = [
            (f"{name}_{side}", kind)
            for name, kind in (("source", texts), ("reward", number), ("h", number))
            for side in ("chosen", "rejected")
        ]
        return pa.schema([("prompt", answer), ("chosen", answer), ("rejected", answer), ("weight", number), ("h", number), *each, *about])
    single = [("label", pa.bool_()), ("weight", number), ("h", number), ("source", texts), ("reward", number)]
    return pa.schema([("prompt", answer), ("completion", answer), *single, *about])


def _columns(records: Path) -> list[str]:
    import pyarrow.parquet as pq

    left_out = {"prompt_hash", "schema_version"}
    return [name for name in pq.read_schema(records).names if name not in left_out]


def _rows_of(
    record: Mapping[str, Any], h: list[float] | None, form: Format, pairs: Pairs, aggregate: Aggregate, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    rewards: list[float | None] = record["rewards"]
    counts["responses without a reward"] += sum(reward is None for reward in rewards)
    counts["tied pairs"] += sum(rewards[i] is not None and rewards[i] == rewards[j] for i, j in combinations(range(len(rewards)), 2))
    factor = None if h is None else record_factor(h, rewards, aggregate)
    weight = (1.0 if (own := record.get("weight")) is None else float(own)) * (1.0 if factor is None else factor)
    if form == "records":
        yield {**record, "h": h, "weight": weight}
        return
    about: dict[str, Any] = {"record_id": record["record_id"], "split": record["split"], "task": record.get("task")}
    prompt, tools = chat_turns(record["prompt"])
    about["tools"] = json.dumps(tools) if tools else None
    if form == "trl-pairs":
        chosen_pairs = preferences(rewards, pairs)
        if not chosen_pairs:
            counts["records without a preference"] += 1
        for winner, loser in chosen_pairs:
            row: dict[str, Any] = {"prompt": prompt, "chosen": _answer(record, winner), "rejected": _answer(record, loser)}
            row |= {"weight": weight / len(chosen_pairs), "h": factor}
            for side, place in (("chosen", winner), ("rejected", loser)):
                row |= {f"source_{side}": record["sources"][place], f"reward_{side}": rewards[place]}
                row[f"h_{side}"] = None if h is None else h[place]
            yield row | about
        return
    labels = approvals(rewards)
    if not labels:
        counts["records without a preference"] += 1
    for place, label in labels:
        row = {"prompt": prompt, "completion": _answer(record, place), "label": label, "weight": weight / len(labels)}
        yield row | {"h": None if h is None else h[place], "source": record["sources"][place], "reward": rewards[place]} | about


def preferences(rewards: Sequence[float | None], pairs: Pairs) -> list[tuple[int, int]]:
    """(preferred, other) places of the strict preferences, or of the best against the worst."""
    measured = [place for place, reward in enumerate(rewards) if reward is not None]
    strict = [(i, j) for i in measured for j in measured if rewards[i] > rewards[j]]  # type: ignore[operator]  # both are measured
    if pairs == "all" or not strict:
        return strict
    low, high = min(measured, key=rewards.__getitem__), max(measured, key=rewards.__getitem__)  # type: ignore[arg-type]
    return [(high, low)]


def approvals(rewards: Sequence[float | None]) -> list[tuple[int, bool]]:
    """(place, label): True for a response that no other of the record beats and that beats one, False for the reverse; the ones between
    have no label. A single response has that of its reward: 1 approved, 0 not."""
    if len(rewards) == 1:
        return [] if rewards[0] is None else [(0, rewards[0] > 0)]
    strict = preferences(rewards, "all")
    winners, losers = {i for i, _ in strict}, {j for _, j in strict}
    return [(place, place in winners) for place in range(len(rewards)) if (place in winners) != (place in losers)]


def _answer(record: Mapping[str, Any], place: int) -> list[dict[str, str]]:
    return split_turns(record["responses"][place])


def record_factor(h: Sequence[float], rewards: Sequence[float | None], mode: Aggregate) -> float:
    """h of a record from its responses'; ``chosen`` takes the first of the largest rewards."""
    best = max(range(len(rewards)), key=lambda place: -np.inf if rewards[place] is None else float(rewards[place] or 0.0))
    chosen = np.arange(len(h)) == best
    return float(aggregate_factors(np.array(h), np.zeros(len(h), dtype=np.int64), mode, chosen)[0])
