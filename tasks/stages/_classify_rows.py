"""Rows of the source classifiers: the training responses and golden rows that they are fitted on, and the head of each.

Rows are numbers; texts are read for the chosen ones only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dora_core.errors import DataError
from tasks.tables.artifacts import GOLDEN_FILE, RECORDS_FILE, UNLABELLED
from tasks.tables.rows import read_index, texts_at

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from dora_core.classifier.model import Examples


def labelled_rows(records: Path, golden_sources: list[str]) -> pa.Table:
    """Rows to fit on, in order of key, as numbers: source (:data:`UNLABELLED` where the data names none, null for extra golden rows),
    prompt_hash, key, golden (bool), and position: i ≥ 0 is training row i of ``records.parquet``, −1 − i that of ``golden.parquet``.

    Raises:
        DataError: no golden response, or nothing but golden responses.
    """
    import numpy as np
    import pyarrow as pa

    from dora_core.data.records import is_golden_source

    train, extra = read_index(records / RECORDS_FILE, "train"), read_index(records / GOLDEN_FILE, "train")
    names = [*train.names, UNLABELLED]  # the last for −1, no source
    is_golden = np.array([is_golden_source(name, golden_sources) for name in names])
    codes = pa.array(train.source_N % len(names), pa.int32())
    rows = pa.table(
        {
            "source": pa.DictionaryArray.from_arrays(pa.concat_arrays([codes, pa.nulls(len(extra), pa.int32())]), names),
            "prompt_hash": np.concatenate([train.prompt_hash_N, extra.prompt_hash_N]),
            "key": np.concatenate([train.key_N, extra.key_N]),
            "golden": np.concatenate([is_golden[train.source_N], np.ones(len(extra), bool)]),
            "position": np.concatenate([np.arange(len(train)), -1 - np.arange(len(extra))]),
        }
    )
    golden = int(rows["golden"].to_numpy().sum())
    if golden == 0:
        known = ", ".join(sorted(set(train.names) - {UNLABELLED})) or "(no row names its source)"
        raise DataError(
            f"no training response comes from a golden source ({', '.join(golden_sources)})",
            hint=f"set data.golden_sources to trusted ones among: {known}; or give data.golden",
        )
    if golden == len(rows):
        raise DataError(
            "every training response is golden: there is nothing to distinguish",
            hint="use objective erm, or name only the trusted sources in data.golden_sources",
        )
    return rows.sort_by("key")


def head_names(rows: pa.Table) -> list[str]:
    """Synthetic sources and UNLABELLED, sorted: the order of heads."""
    import pyarrow.compute as pc

    return sorted(pc.unique(rows.filter(pc.invert(rows["golden"]))["source"].cast("string")).to_pylist())


def heads_of(rows: pa.Table, sources: list[str]) -> np.ndarray:
    """Position in ``sources`` of each row's source, int64, (N,); GOLDEN for golden rows, another negative number for other sources."""
    import numpy as np

    from dora_core.classifier.model import GOLDEN

    source = rows["source"].combine_chunks()
    heads = {name: i for i, name in enumerate(sources)}
    head_of = np.array([*(heads.get(name, GOLDEN - 1) for name in source.dictionary.to_pylist()), GOLDEN], dtype=np.int64)
    return np.where(rows["golden"].to_numpy(), GOLDEN, head_of[source.indices.fill_null(-1).to_numpy()])


def at_most(limit: int, rows: pa.Table, sources: list[str]) -> pa.Table:
    """At most ``limit`` golden rows and ``limit`` of each source: the smallest keys, which are hashes, so the sample is fair."""
    import numpy as np

    from dora_core.classifier.model import GOLDEN

    head = heads_of(rows, sources)
    return rows.take(np.sort(np.concatenate([np.flatnonzero(head == h)[:limit] for h in (GOLDEN, *range(len(sources)))])))


def to_examples(rows: pa.Table, sources: list[str], folds: int, records: Path) -> Examples:
    """Read the texts of the rows of :func:`at_most`."""
    import numpy as np

    from dora_core.classifier.model import Examples
    from dora_core.data.records import fold_of

    hashes, position = rows["prompt_hash"].to_numpy(), rows["position"].to_numpy()
    train = np.flatnonzero(position >= 0)
    extra = np.flatnonzero(position < 0)
    texts = np.empty((2, len(rows)), dtype=object)  # prompts, responses
    texts[:, train] = texts_at(records / RECORDS_FILE, position[train], "train")
    texts[:, extra] = texts_at(records / GOLDEN_FILE, -1 - position[extra], "train")
    prompts, responses = texts.tolist()
    return Examples(prompts, responses, heads_of(rows, sources), hashes, fold_of(hashes, folds), position < 0)
