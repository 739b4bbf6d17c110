"""The join of alignment: records, calibration and reference tables as one stream of training records.

All three are in the order of records, so each is read once, front to back, a batch at a time, and their ids are compared on the way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dora_core.data.unpaired import LABEL
from dora_core.errors import DataError
from tasks.tables.join_settings import Aggregate as Aggregate
from tasks.tables.join_settings import TrustUse as TrustUse
from tasks.tables.record_selection import HeldOutPrompts, RecordSelection
from tasks.tables.rows import record_batches, responses_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

READ_ROWS = 16_384
LABEL_PROBABILITY = "label_probability"


def joined_records(
    records: Path,
    logps: Path,
    factors: Path | None,
    aggregate: Aggregate,
    trust: Path | None = None,
    trust_use: TrustUse = "soft_label",
    selection: RecordSelection | None = None,
    held_out: HeldOutPrompts | None = None,
) -> Iterator[pa.Table]:
    """Training records, in order, as tables of ``dora_core.training.alignment_data.JOINED_COLUMNS``.

    Args:
        records: ``records.parquet``.
        logps: ``logps.parquet`` of a ``reference`` stage, both splits.
        factors: ``calibration.parquet`` of a ``calibrate`` or ``truth`` stage, train split; None: h = 1.
        aggregate: see :data:`Aggregate`.
        trust: ``label_trust.parquet`` of a ``value`` stage, train split. As a soft label it stands where the data gives no probability
            of its own; as a weight it is scaled to mean 1. A record without an estimate keeps its label and weight.
        trust_use: see :data:`TrustUse`.
        selection: the records wanted; None: all. Their ``row`` is the position among all training records.
        held_out: prompts whose records are left out.

    Raises:
        DataError: a table does not go with the records; names the first response where it differs.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    reference = _Follower(logps, "logp")
    tokens = _Follower(logps, "tokens") if "tokens" in pq.read_schema(logps).names else None
    calibration = None if factors is None else _Follower(factors, "h")
    trusted = None if trust is None else _Follower(trust, LABEL_PROBABILITY, ("record_id",))
    scale = 1.0 if trust is None or trust_use == "soft_label" else _mean(trust, LABEL_PROBABILITY)
    selected_by = selection.columns if selection else ["sources"]
    columns = ["record_id", "prompt", "responses", "rewards", "reward_kind", "split", *selected_by]
    columns += ["prompt_hash"] if held_out is not None else []
    # Records of an earlier release have no such column.
    has_probability = LABEL_PROBABILITY in pq.read_schema(records).names
    row = 0
    for batch in record_batches(records, [*columns, LABEL_PROBABILITY] if has_probability else columns):
        if not has_probability:
            batch = batch.append_column(LABEL_PROBABILITY, pa.nulls(len(batch), pa.float64()))
        keys = responses_of(batch.select(["record_id", "responses", "split"]))
        train = pc.equal(batch["split"], "train")
        values = reference.take(keys)
        batch = batch.append_column("logps", _like_lists(batch["responses"], values))
        if tokens is not None:
            batch = batch.append_column("tokens", _like_lists(batch["responses"], tokens.take(keys)))
        batch = batch.filter(train)
        if not len(batch):
            continue
        h = np.ones(len(batch)) if calibration is None else _record_factors(batch, calibration, aggregate)
        if trusted is not None:
            q = trusted.take(batch.select(["record_id"]))
            if trust_use == "weight":
                h *= np.where(np.isnan(q), 1.0, q / scale)
            else:
                at = batch.column_names.index(LABEL_PROBABILITY)
                filled = pc.coalesce(batch[LABEL_PROBABILITY], pa.array(q, mask=np.isnan(q)))
                batch = batch.set_column(at, LABEL_PROBABILITY, filled)
        numbered = batch.append_column("row", pa.array(np.arange(row, row + len(batch)))).append_column("factor", pa.array(h))
        row += len(batch)
        chosen = chosen_records(numbered, selection, held_out)
        if len(chosen):
            yield chosen
    for follower in (reference, tokens, calibration, trusted):
        if follower is not None:
            follower.finish()


def chosen_records(records: pa.Table, selection: RecordSelection | None, held_out: HeldOutPrompts | None) -> pa.Table:
    """The records that are selected and whose prompt is not held out."""
    import pyarrow as pa

    if selection is not None:
        records = records.filter(selection.of(records))
    return records if held_out is None else records.filter(pa.array(~held_out.of(records["prompt_hash"])))


class _Follower:
    """One column of a table with a row per response, or per record, read along with the records."""

    def __init__(self, path: Path, column: str, keys: tuple[str, ...] = ("record_id", "response_index")):
        self._path, self._column, self._keys = path, column, keys
        self._tables = self._read()
        self._held: pa.Table | None = None
        self._row = 0

    def _read(self) -> Iterator[pa.Table]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(READ_ROWS, columns=[*self._keys, self._column]):
                yield pa.Table.from_batches([batch])

    def take(self, keys: pa.Table) -> NDArray[np.float64]:
        """The column at the next ``len(keys)`` rows, which must have the ids ``keys``; NaN where it is null."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        held = [] if self._held is None else [self._held]
        while sum(map(len, held)) < len(keys) and (table := next(self._tables, None)) is not None:
            held.append(table)
        table = pa.concat_tables(held) if held else keys.slice(0, 0)
        own, self._held = table.slice(0, len(keys)), table.slice(len(keys))
        expected = keys.slice(0, len(own))
        same = pc.equal(own["record_id"], expected["record_id"])
        if "response_index" in self._keys:
            same = pc.and_(same, pc.equal(own["response_index"].cast("int32"), expected["response_index"]))
        at = pc.index(same, False).as_py()
        if at >= 0 or len(own) < len(keys):
            at = at if at >= 0 else len(own)
            found = self._name(own, at) if at < len(own) else "nothing"
            self._refuse(f"{found} where {self._name(keys, at)} is expected", self._row + at)
        self._row += len(own)
        return np.asarray(own[self._column].to_numpy(), dtype=np.float64)

    def finish(self) -> None:
        if (self._held is not None and len(self._held)) or next(self._tables, None) is not None:
            self._refuse("more rows than the records have responses", self._row)

    def _name(self, rows: pa.Table, at: int) -> str:
        return " response ".join(str(rows[key][at]) for key in self._keys)

    def _refuse(self, difference: str, row: int) -> None:
        raise DataError(
            f"{self._path.name} row {row} does not go with the records: {difference}",
            hint=f"it was computed for other records; delete {self._path.parent} and run again",
        )


def _mean(path: Path, column: str) -> float:
    """Mean of a column without its nulls; 1 where there is nothing else, or it is 0."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    return float(pc.mean(pq.read_table(path, columns=[column])[column]).as_py() or 1.0)


def _like_lists(lists: pa.ChunkedArray, values: NDArray[np.float64]) -> pa.ListArray:
    """Flat values as lists of the lengths of ``lists``."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = pc.list_value_length(lists).to_numpy()
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), pa.array(values))


def _record_factors(batch: pa.Table, calibration: _Follower, aggregate: Aggregate) -> NDArray[np.float64]:
    """h per record from the calibration table's h per response."""
    import numpy as np
    import pyarrow as pa

    from dora_core.calibration import aggregate as aggregate_factors

    numbered = batch.select(["record_id", "responses"]).append_column("record", pa.array(np.arange(len(batch))))
    keys = responses_of(numbered)
    best = [_first_best(rewards) for rewards in batch["rewards"].to_pylist()]
    record = keys["record"].to_numpy()
    chosen = keys["response_index"].to_numpy() == np.array(best, dtype=np.int64)[record]
    return aggregate_factors(calibration.take(keys), record, aggregate, chosen)


def _first_best(rewards: list[float | None]) -> int:
    """Place of the largest reward, the first of equal ones; unmeasured ones come last."""
    return max(range(len(rewards)), key=lambda place: -math.inf if (reward := rewards[place]) is None else reward)


def count_unpaired(records: Path, split: str) -> tuple[int, int]:
    """Number of unpaired records of a split of ``records.parquet``, and of all its records."""
    import pyarrow.compute as pc

    unpaired = total = 0
    for batch in record_batches(records, ["reward_kind"], split):
        unpaired += pc.sum(pc.equal(batch["reward_kind"], LABEL)).as_py() or 0
        total += len(batch)
    return unpaired, total


def count_trainable(records: Path, selection: RecordSelection | None = None, held_out: HeldOutPrompts | None = None) -> int:
    """Number of training records from which alignment learns: two different rewards, or one label."""
    import pyarrow.compute as pc

    count = 0
    selected_by = [] if selection is None else selection.columns
    for batch in record_batches(records, ["rewards", "reward_kind", "prompt_hash", *selected_by], "train"):
        chosen = chosen_records(batch, selection, held_out)
        labelled = pc.equal(chosen["reward_kind"], LABEL).to_pylist()
        count += sum(is_labelled or _differ(rewards) for is_labelled, rewards in zip(labelled, chosen["rewards"].to_pylist(), strict=True))
    return count


def _differ(rewards: list[float | None]) -> bool:
    measured = {reward for reward in rewards if reward is not None and not math.isnan(reward)}
    return len(measured) > 1
