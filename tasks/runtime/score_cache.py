"""Row cache: values computed once per row and model, read by the row's key from then on.

A row cache is a folder of the store with immutable Parquet parts (``key`` and columns of numbers), each named by the sha256 of its content:
a part that is torn or altered does not have its name and is not read, concurrent writers never touch one file, and it works through any
store. The folder's name identifies the model that computed the values (``scores/<classifier digest>``, ``logps/<digest of weights,
tokenizer and truncation>``), so values of another model are never found in it.

:func:`score_rows` computes the values that a row cache lacks. A finished shard survives a crash in the stage's scratch folder
(``tasks/runtime/shards.py``); when all are finished they become one new part.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dora_core.config.execution import Execution
from infra.store.store import replacing, sha256_file
from tasks.runtime.facts import ScoringFacts
from tasks.runtime.stage import StageContext
from tasks.runtime.workers import BuildWorker
from tasks.tables.rows import rebatch

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

ROW_GROUP = 65_536


class CachedRows:
    """Columns of numbers by uint64 ``key``; see the module docstring."""

    def __init__(self, context: StageContext, folder: str):
        self._store, self._log, self._folder, self._scratch = context.store, context.log, folder, context.scratch

    def tables(self) -> Iterator[pa.Table]:
        """All valid rows, :data:`ROW_GROUP` at a time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for name in self._store.list(self._folder):
            if not name.endswith(".parquet") or name.startswith("."):
                continue
            path = self._store.local_root / self._folder / name
            if not _is_whole(path):
                self._store.download(f"{self._folder}/{name}")
            if _is_whole(path):
                with pq.ParquetFile(path) as part:
                    for batch in part.iter_batches(ROW_GROUP):
                        yield pa.Table.from_batches([batch])
            else:
                self._log.warning("%s/%s is damaged and is not used; its rows are computed again", self._folder, name)

    def add(self, tables: Iterable[pa.Table]) -> None:
        """Store new rows durably as one part: written in the stage's own scratch folder, which goes with the stage, then renamed to the
        content's checksum."""
        import pyarrow.parquet as pq

        folder = self._store.local_root / self._folder
        folder.mkdir(parents=True, exist_ok=True)
        part = self._scratch / "part.parquet"
        with replacing(part) as file:
            writer: pq.ParquetWriter | None = None
            for table in rebatch(tables, ROW_GROUP):
                writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
                writer.write_table(table)
            assert writer is not None, "a part has at least one table"
            writer.close()
        name = f"{sha256_file(part)}.parquet"
        os.replace(part, folder / name)
        self._store.upload(f"{self._folder}/{name}", folder / name)


def _is_whole(part: Path) -> bool:
    return part.exists() and sha256_file(part) == part.stem


@dataclass(frozen=True)
class Scores:
    """Values of N rows, stored once per distinct key.

    Attributes:
        totals: sums over new rows of the columns that are not kept.
    """

    facts: ScoringFacts
    totals: dict[str, float]
    columns: dict[str, NDArray[Any]]
    place_N: NDArray[np.int64]

    def rows(self, start: int = 0, stop: int | None = None) -> dict[str, NDArray[Any]]:
        """Columns of the rows [start, stop), in their order."""
        return self.at(slice(start, stop))

    def at(self, rows: slice | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Columns of these rows."""
        return {name: values[self.place_N[rows]] for name, values in self.columns.items()}


def score_rows(
    context: StageContext,
    cache: CachedRows,
    key_N: NDArray[np.uint64],
    rows: Callable[[NDArray[np.int64]], Iterator[pa.Table]],
    *,
    summed: Sequence[str] = (),
    name: str,
    worker: BuildWorker,
    execution: Execution,
    unit: str,
) -> Scores:
    """Return values of all rows: from the row cache, else from a ``worker`` (``tasks/runtime/shards.py``), which are then cached.

    Memory: 16 bytes a row, and 17 bytes and the values per distinct key; texts are streamed.

    Args:
        rows: streams the rows at the given positions (ascending): ``key`` and the worker's columns.
        summed: columns of the worker's output that are not kept, only summed.
    """
    import numpy as np
    import pyarrow.compute as pc

    from tasks.runtime.shards import stream_shards

    values = _Values(*np.unique(key_N, return_index=True, return_inverse=True))
    for table in cache.tables():
        values.put(table)
    new, totals = values.missing(), dict.fromkeys(summed, 0.0)
    rows_per_second: float | None = None
    if len(new):
        started = time.monotonic()

        def scored() -> Generator[pa.Table]:
            for table in stream_shards(
                context,
                rows(new),
                total=len(new),
                name=name,
                worker=worker,
                execution=execution,
                unit=unit,
            ):
                for column in summed:
                    totals[column] += pc.sum(table[column]).as_py()
                kept = table.drop_columns(list(summed))
                values.put(kept)
                yield kept

        with closing(scored()) as tables:  # an error while writing also ends the actors
            cache.add(tables)
        rows_per_second = len(new) / (time.monotonic() - started)
    assert values.found_K.all(), "every row was cached or has been scored"
    facts = ScoringFacts(scored_rows=len(new), reused_rows=len(key_N) - len(new), rows_per_second=rows_per_second)
    return Scores(facts, totals, values.columns, values.place_N)


@dataclass
class _Values:
    """Columns by distinct key, sorted; ``first_K`` is the first row with each key: the same text twice is scored once."""

    key_K: NDArray[np.uint64]
    first_K: NDArray[np.int64]
    place_N: NDArray[np.int64]
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import numpy as np

        self.found_K = np.zeros(len(self.key_K), dtype=bool)

    def put(self, table: pa.Table) -> None:
        """Take the values of wanted keys; of two values of one key the first counts."""
        import numpy as np

        keys = table["key"].to_numpy()
        place = np.searchsorted(self.key_K, keys)
        place[place == len(self.key_K)] = 0
        wanted = np.flatnonzero((self.key_K[place] == keys) & ~self.found_K[place])
        for name in table.column_names:
            if name != "key":
                column = table[name].to_numpy()
                self.columns.setdefault(name, np.zeros(len(self.key_K), column.dtype))[place[wanted]] = column[wanted]
        self.found_K[place[wanted]] = True

    def missing(self) -> NDArray[np.int64]:
        """The first position of every key without values, ascending."""
        import numpy as np

        return np.sort(self.first_K[~self.found_K])
