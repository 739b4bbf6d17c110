"""The runs of a study: references to the outputs of one seed of a cell, and their measures per held-out prompt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from dora_core.evaluation.study_statistics import Cell, TableName
from dora_core.strict_model import StrictModel
from tasks.runtime.spec import StageRef
from tasks.runtime.stage import StageContext
from tasks.stages import evaluate
from tasks.tables.artifacts import EVALUATION_FILE, RESPONSES_FILE

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


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


@dataclass(frozen=True)
class Series:
    """One number per held-out prompt of one run: (K,) distinct ids in ascending order, (K,) finite values."""

    ids: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, values: np.ndarray) -> Series:
        """Leave out the prompts where the measure is undefined."""
        import numpy as np

        return cls(ids[np.isfinite(values)], values[np.isfinite(values)])

    def minus(self, other: Series) -> np.ndarray:
        """Differences on the shared prompts."""
        import numpy as np

        _, ours, theirs = np.intersect1d(self.ids, other.ids, assume_unique=True, return_indices=True)
        difference: np.ndarray = self.values[ours] - other.values[theirs]
        return difference


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


def measure(one: CellRun, reader: Reader) -> dict[str, Series]:
    """Every measure of one run, per prompt, and the KL as a series of one."""
    import numpy as np
    import pyarrow.compute as pc

    from dora_core.evaluation.metrics import correct, padded, pair_accuracy, spearman_within
    from dora_core.evaluation.winrate import win_rate, win_tie_lose

    ids, gold = reader.gold(one.scores)
    start_ids, start_gold = reader.gold(one.start_scores)
    shared, ours, theirs = np.intersect1d(ids, start_ids, assume_unique=True, return_indices=True)
    shares = win_tie_lose(gold[ours], start_gold[theirs])
    found = {name: Series(shared, shares[:, i]) for i, name in enumerate(("win", "tie", "lose"))}
    found |= {"win_rate": Series(shared, win_rate(shares)), "gold": Series(ids, gold.mean(axis=1))}

    samples = reader.table(one.samples, "samples.parquet", ["record_id", "sample"])
    found["tokens"] = _prompt_means(strings(samples["record_id"]), samples["tokens"].to_numpy().astype(float))

    pairs = reader.table(one.evaluation, EVALUATION_FILE, ["prompt_hash"])
    found["accuracy"] = _prompt_means(pairs["prompt_hash"].to_numpy(), correct(pairs["margin_policy"].to_numpy()))

    keys = ["record_id", "response_index"]
    truth = reader.table(one.truth, "truth.parquet", keys)
    held_out = truth.filter(pc.equal(truth["split"], "eval")).select([*keys, "gold"])
    scored = reader.table(one.evaluation, RESPONSES_FILE, keys).join(held_out, keys, join_type="inner")
    scored = scored.sort_by([(key, "ascending") for key in keys])
    prompts, index = np.unique(strings(scored["record_id"]), return_inverse=True)
    columns = {name: padded(scored[name].to_numpy(), index) for name in ("implicit", "logp_per_token", "gold")}
    found["accuracy_gold"] = Series.of(prompts, pair_accuracy(columns["implicit"], columns["gold"]))
    found["confidence_implicit"] = Series.of(prompts, spearman_within(columns["implicit"], columns["gold"]))
    found["confidence_likelihood"] = Series.of(prompts, spearman_within(columns["logp_per_token"], columns["gold"]))

    kl = reader.context.facts(one.evaluation, evaluate.Facts).kl
    found["kl"] = Series.of(np.array(["all"]), np.array([np.nan if kl is None else kl.value], dtype=float))
    return found


def _prompt_means(prompt_N: np.ndarray, values_N: np.ndarray) -> Series:
    import numpy as np

    ids, index = np.unique(prompt_N, return_inverse=True)
    return Series(ids, np.bincount(index, values_N) / np.bincount(index))


def strings(column: pa.ChunkedArray) -> np.ndarray:
    """A column of text as numpy text, which sorts and compares quickly."""
    import numpy as np

    return np.array(column.to_pylist(), dtype=str)
