"""Alignment data from plain lists, for the tests of its readers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dora_core.data.encoding import Encoder
from dora_core.training.alignment_data import AlignmentData, write_alignment_data


def alignment_data(records: list[dict[str, Any]], factors: Sequence[float], logps: Sequence[float], encoder: Encoder) -> AlignmentData:
    """``records`` have prompt (messages), responses, rewards and sources, and ``reward_kind`` where it is not reward, ``label_probability``
    where it is not 1; ``logps`` are of all their responses, flat."""
    flat = iter(logps)
    rows = [
        {"reward_kind": "reward", "label_probability": None}
        | r
        | {"row": i, "factor": float(h), "logps": [next(flat) for _ in r["responses"]]}
        for i, (r, h) in enumerate(zip(records, factors, strict=True))
    ]
    names = [name for r in records for name in r["sources"]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.arrow"
        write_alignment_data(path, [pa.Table.from_pylist(rows)], encoder, 8, sources=names, records=len(rows))
        return AlignmentData(path)  # it is mapped: the name may go
