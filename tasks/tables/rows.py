"""Responses of ``records.parquet`` and ``golden.parquet`` as rows, streamed, for the sharded stages.

A *row* is one response; rows are in the order of the records, and a row's *position* is its number within its split. Numbers of
all rows (:func:`read_index`, 20 bytes each) fit in memory where texts do not: stages decide on numbers which rows they need, then
stream those rows' texts (:func:`text_rows`), one Parquet row group at a time.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

BATCH_RECORDS = 1024


def record_batches(
    file: Path, columns: Sequence[str], split: str | None = None, row_groups: Sequence[int] | None = None
) -> Iterator[pa.Table]:
    """``columns`` of the records of ``split`` (None: all) in batches of at most :data:`BATCH_RECORDS`, never an empty one."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    read = list(columns) if split is None else [*columns, "split"]
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(BATCH_RECORDS, row_groups=row_groups, columns=read):
            records = pa.Table.from_batches([batch])
            if split is not None:
                records = records.filter(pc.equal(records["split"], split))
            if records.num_rows:
                yield records.select(columns)


def _holds_single_responses(file: Path) -> bool:
    """Whether each row of a file is one response, as in ``golden.parquet``; a record of ``records.parquet`` has a list of them."""
    import pyarrow.parquet as pq

    return "response" in pq.read_schema(file).names


def has_goals(file: Path) -> bool:
    """Whether prompts of a file of records may state goals."""
    import pyarrow.parquet as pq

    return "goal" in pq.read_schema(file).names


def responses_of(records: pa.Table) -> pa.Table:
    """One row per response: ``response_index``, the elements of the lists ``responses`` and ``sources`` as ``response`` and ``source``,
    and the record's other columns. A table without lists (golden rows) has one response per record."""
    import pyarrow as pa

    lists = {"responses": "response", "sources": "source"}
    listed = [name for name in records.column_names if name in lists]
    if not listed:
        return records
    parent, index = _parents(records[listed[0]])
    columns = {"response_index": pa.array(index, pa.int32())}
    for name in records.column_names:
        column = records[name].combine_chunks()
        columns[lists.get(name, name)] = column.flatten() if name in lists else column.take(parent)
    return pa.table(columns)


def _parents(lists: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int64]]:
    """Of every element: its list, and its place in that list."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = pc.list_value_length(lists).to_numpy()
    starts = np.cumsum(lengths) - lengths
    return pa.array(np.repeat(np.arange(len(lengths)), lengths)), np.arange(lengths.sum()) - np.repeat(starts, lengths)


def rebatch(tables: Iterable[pa.Table], rows: int | Iterator[int]) -> Iterator[pa.Table]:
    """The same rows in tables of ``rows`` rows, or of these numbers of rows (the last repeats); the last may be smaller, and is empty only
    if all are (it has a schema)."""
    import pyarrow as pa

    sizes = itertools.repeat(rows) if isinstance(rows, int) else rows
    size, held, count, first = next(sizes), list[pa.Table](), 0, True
    for table in tables:
        held.append(table)
        count += table.num_rows
        if count < size:
            continue
        whole, start, first = pa.concat_tables(held), 0, False
        while count >= size:
            yield whole.slice(start, size)
            start, count, size = start + size, count - size, next(sizes, size)
        held = [whole.slice(start)]
    if held and (count or first):
        yield pa.concat_tables(held)


# ------------------------------------------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class RowIndex:
    """Numbers of N rows, 20 bytes each.

    Attributes:
        key_N: uint64, see :func:`row_keys`.
        prompt_hash_N: uint64.
        source_N: int32, position in ``names``; −1 = the data names no source.
    """

    key_N: NDArray[np.uint64]
    prompt_hash_N: NDArray[np.uint64]
    source_N: NDArray[np.int32]
    names: list[str]

    def __len__(self) -> int:
        return len(self.key_N)


def row_keys(prompt_hash_N: NDArray[np.uint64], responses: pa.Array, goals: pa.Array | None = None) -> NDArray[np.uint64]:
    """Identity of each (prompt, response) across runs; by birthday, ten million rows collide with probability 3e-6.

    Args:
        goals: text in front of each prompt, which its hash leaves out; null: none.
    """
    import numpy as np
    import pyarrow as pa

    texts = responses.cast(pa.large_binary()).to_pylist()
    if goals is not None:
        said = goals.cast(pa.large_binary()).to_pylist()
        texts = [text if goal is None else b"%d %s %s" % (len(goal), goal, text) for goal, text in zip(said, texts, strict=True)]
    prefixes = prompt_hash_N.astype(">u8").tobytes()
    digests = (hashlib.sha256(prefixes[i : i + 8] + y).digest()[:8] for i, y in zip(range(0, len(prefixes), 8), texts, strict=True))
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def read_index(file: Path, split: str | None = None) -> RowIndex:
    """Numbers of all responses of ``split`` (None: both), read in one pass over the file."""
    import numpy as np

    keys, hashes, sources = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], [np.empty(0, np.int32)]
    codes: dict[str, int] = {}
    columns = ["prompt_hash", "response"] if _holds_single_responses(file) else ["prompt_hash", "responses", "sources"]
    columns += ["goal"] if has_goals(file) else []
    for records in record_batches(file, columns, split):
        rows = responses_of(records)
        hashes.append(rows["prompt_hash"].to_numpy())
        goals = rows["goal"].combine_chunks() if "goal" in columns else None
        keys.append(row_keys(hashes[-1], rows["response"].combine_chunks(), goals))
        if "source" in rows.column_names:
            encoded = rows["source"].combine_chunks().dictionary_encode()
            code_of = np.array([*(codes.setdefault(name, len(codes)) for name in encoded.dictionary.to_pylist()), -1], np.int32)
            sources.append(code_of[encoded.indices.fill_null(-1).to_numpy()])
        else:
            sources.append(np.full(len(rows), -1, np.int32))
    return RowIndex(np.concatenate(keys), np.concatenate(hashes), np.concatenate(sources), list(codes))


# --------------------------------------------------------------------------------------------------------------- texts


def text_rows(file: Path, positions: NDArray[np.int64], split: str | None = None, *, plain: bool) -> Iterator[pa.Table]:
    """The rows at ``positions`` (ascending), in small tables: ``position``, ``prompt`` (messages; their text if ``plain``), ``response``
    (a transcript if ``plain`` and of several turns).

    Row groups without any of them are not read.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from dora_core.data.encoding import plain_prompt
    from dora_core.data.response_turns import TURN

    numbers, texts = ("prompt_hash", "response") if _holds_single_responses(file) else ("sources", "responses")
    with pq.ParquetFile(file) as parquet:
        groups = parquet.num_row_groups
    stop = 0
    for group in range(groups):
        start = stop
        stop += sum(len(responses_of(batch)) for batch in record_batches(file, [numbers], split, [group]))
        if not _inside(positions, start, stop).size:
            continue
        for records in record_batches(file, ["prompt", texts], split, [group]):
            rows = responses_of(records.append_column("record", pa.array(np.arange(len(records)))).drop_columns("prompt"))
            wanted = _inside(positions, start, start + len(rows))
            used, record = np.unique(rows["record"].to_numpy()[wanted - start], return_inverse=True)
            prompts = records["prompt"].combine_chunks().take(used)
            if plain:
                prompts = pa.array([plain_prompt(messages) for messages in prompts.to_pylist()], pa.large_string())
            responses = rows["response"].combine_chunks().take(wanted - start).cast(pa.large_string())
            if plain:
                responses = pc.replace_substring(responses, TURN, "")
            yield pa.table({"position": wanted, "prompt": prompts.take(record), "response": responses})
            start += len(rows)


def _inside(positions: NDArray[np.int64], start: int, stop: int) -> NDArray[np.int64]:
    first, last = positions.searchsorted([start, stop])
    return positions[first:last]


def texts_at(file: Path, positions: NDArray[np.int64], split: str | None = None) -> tuple[list[str], list[str]]:
    """Plain prompts and responses of rows, in the order of ``positions`` (distinct); they are all in memory."""
    import numpy as np

    prompts, responses = list[str](), list[str]()
    for table in text_rows(file, np.sort(positions), split, plain=True):
        prompts += table["prompt"].to_pylist()
        responses += table["response"].to_pylist()
    place = np.argsort(np.argsort(positions))
    return [prompts[i] for i in place], [responses[i] for i in place]
