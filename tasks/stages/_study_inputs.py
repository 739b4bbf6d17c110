"""The runs of a study: references to the outputs of one seed of a cell, and the tables of these outputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from dora_core.evaluation.study_statistics import Cell, TableName
from dora_core.strict_model import StrictModel
from tasks.runtime.spec import StageRef

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tasks.runtime.stage import StageContext


class CellRun(StrictModel):
    """One seed of a cell: references to its outputs.

    ``calibration`` is a ``calibrate`` or ``truth`` stage, None where h is not used; ``guards``: the guard stages of the cell's own round.
    """

    cell: Cell
    seed: int = Field(ge=0)
    tables: list[TableName] = Field(min_length=1)
    records: StageRef
    align: StageRef
    samples: StageRef
    scores: StageRef
    start_scores: StageRef
    evaluation: StageRef
    truth: StageRef
    calibration: StageRef | None = None
    guards: list[StageRef] = Field(default_factory=list)


class Reader:
    """Input tables, each read once: cells share starts, truths and calibrations."""

    def __init__(self, context: StageContext):
        self.context = context
        self._tables: dict[tuple[StageRef, str], pa.Table] = {}

    def table(self, ref: StageRef, name: str, keys: Iterable[str]) -> pa.Table:
        """A stage's Parquet file, sorted by ``keys``."""
        import pyarrow.parquet as pq

        if (ref, name) not in self._tables:
            self._tables[ref, name] = pq.read_table(self.context.fetch(ref) / name).sort_by([(key, "ascending") for key in keys])
        return self._tables[ref, name]

    def gold(self, scores: StageRef) -> tuple[np.ndarray, np.ndarray]:
        """Prompts (K,) and gold rewards (K, samples per prompt) of a judge stage."""
        import numpy as np

        table = self.table(scores, "scores.parquet", ["record_id", "sample"])
        ids, counts = np.unique(strings(table["record_id"]), return_counts=True)
        assert len(set(counts.tolist())) == 1, "the generate stage draws equally many samples for every prompt"
        return ids, table["score"].to_numpy().reshape(len(ids), -1)


def strings(column: pa.ChunkedArray) -> np.ndarray:
    """A column of text as numpy text, which sorts and compares quickly."""
    import numpy as np

    return np.array(column.to_pylist(), dtype=str)
