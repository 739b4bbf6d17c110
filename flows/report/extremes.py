"""Records at both ends of the calibration factor h and of label trust, with source and reason; ids only, no texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from heapq import nlargest, nsmallest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dora_core.errors import StoreError
from infra.store.store import Store
from tasks.runtime.descriptor import StageResult
from tasks.tables.artifacts import CALIBRATION_FILE, TRUST_FILE

if TYPE_CHECKING:
    from tasks.stages._value_facts import SourceValue

TEN = 10
BATCH = 65_536
MOST_BYTES = 1_000_000_000
"""Largest table that is read, and downloaded where the store is remote."""
HEAD = "c_"
"""Beginning of the columns with a classifier's probability that a response is golden."""


@dataclass(frozen=True)
class Row:
    """A response by h, or a record by trust."""

    record_id: str
    response: int | None
    source: str
    value: float
    reason: str


@dataclass(frozen=True)
class Extremes:
    """Both ends of one measure, each from its end inwards."""

    title: str
    symbol: str
    bottom: list[Row]
    top: list[Row]


def by_factor(store: Store, calibration: StageResult[Any]) -> Extremes | None:
    """Responses with the smallest and largest h; None where every h is equal.

    The reason is the probability, by the classifier of its source, that the response is golden.
    """
    path = _table(store, calibration, CALIBRATION_FILE)
    if path is None:
        return None
    bottom, top = _ends(_factors(path))
    return Extremes("Calibration factor", "h", bottom, top) if bottom and bottom[0].value < top[0].value else None


def by_trust(store: Store, valuation: StageResult[Any]) -> Extremes | None:
    """Records whose labels are trusted least and most; None where no label has a probability, or all have the same."""
    path = _table(store, valuation, TRUST_FILE)
    if path is None:
        return None
    bottom, top = _ends(_trusted(path, valuation.facts.sources))
    return (
        Extremes("Trust in labels", "probability that the label is right", bottom, top)
        if bottom and bottom[0].value < top[0].value
        else None
    )


def _table(store: Store, result: StageResult[Any], name: str) -> Path | None:
    """Fetch a stage's table; None where it has none.

    Raises:
        StoreError: the table is damaged, or larger than a page is worth.
    """
    content = store.read_result(result.stage, result.digest)
    if content is None or name not in content["files"]:
        return None
    size = content["files"][name]["bytes"]
    if size > MOST_BYTES:
        raise StoreError(f"{name} has {size / 1e9:.1f} GB, which is not read for a page: dora data export --run RUN has every record")
    return store.fetch(result.stage, result.digest) / name


def _ends(rows: Iterator[Row]) -> tuple[list[Row], list[Row]]:
    """Smallest and largest ten; of equal ones the first in the table."""
    found = list(rows)
    return nsmallest(TEN, found, key=lambda row: row.value), nlargest(TEN, found, key=lambda row: row.value)


def _at_ends(path: Path, measure: str, columns: Callable[[list[str]], list[str]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of every batch that may be among the smallest and largest ten by ``measure``; NaN and null are left out.

    Args:
        columns: picks the columns to read from all of them.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH, columns=[measure, *columns(file.schema_arrow.names)]):
            values = batch.column(measure).to_numpy(zero_copy_only=False).astype(float)
            order = np.argsort(values, kind="stable")
            order = order[: int(np.count_nonzero(~np.isnan(values)))]  # NaN is sorted last
            yield from batch.take(pa.array(np.unique([*order[:TEN], *order[-TEN:]]).astype(np.int64))).to_pylist()


def _factors(path: Path) -> Iterator[Row]:
    def columns(names: list[str]) -> list[str]:
        return ["record_id", "response_index", "source", *(name for name in names if name.startswith(HEAD))]

    for row in _at_ends(path, "h", columns):
        golden = {name.removeprefix(HEAD): p for name, p in row.items() if name.startswith(HEAD) and p is not None and p == p}
        yield Row(row["record_id"], row["response_index"], row["source"] or "(unlabelled)", row["h"], _why(golden, row["source"]))


def _why(golden: dict[str, float], source: str | None) -> str:
    """Name the classifier of the response's own source, else the one that is surest."""
    if not golden:
        return "not scored: no number from the classifiers"
    head = source if source in golden else max(golden, key=lambda name: abs(golden[name] - 0.5))
    return f"golden with probability {golden[head]:.2f}, against {head}"


def _trusted(path: Path, sources: Mapping[str, SourceValue]) -> Iterator[Row]:
    for row in _at_ends(path, "label_probability", lambda _: ["record_id", "label_source"]):
        found = sources.get(row["label_source"])
        if found is None:
            reason = "labelled by a golden source"
        elif found.agreement is None:
            reason = "no estimate of the source as a whole"
        else:
            reason = f"the source agrees with people in {found.agreement.value:.0%} of pairs, by {(found.method or '').replace('_', ' ')}"
        yield Row(row["record_id"], None, row["label_source"] or "(unknown)", row["label_probability"], reason)
