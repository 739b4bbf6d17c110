"""Training records of alignment: the records, calibration and reference tables joined, and read by index.

Legend: N responses of a record.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dora_core.errors import DataError
from dora_core.packing import packed_tokens
from dora_core.text import EncodedResponse, Encoder

UNKNOWN = "unknown"


@dataclass(frozen=True)
class AlignmentRecord:
    """One record, its responses encoded.

    Attributes:
        row: position in the records table.
        rewards: NaN where not measured.
        factor: the record's h ≥ 0.
        sources: position in ``AlignmentData.sources`` of each response's source.
    """

    row: int
    responses: list[EncodedResponse]
    rewards: list[float]
    reference_logps: list[float]
    factor: float
    sources: list[int]


def choose_responses(rewards: Sequence[float], limit: int) -> list[int]:
    """Indices of at most ``limit`` measured responses, best first: best, worst, and evenly spaced ranks between.

    Unmeasured responses (NaN) are left out: no loss may use them.
    """
    measured = [i for i, r in enumerate(rewards) if not math.isnan(r)]
    ranked = sorted(measured, key=lambda i: -rewards[i])
    if len(ranked) <= limit:
        return ranked
    return [ranked[round(k * (len(ranked) - 1) / (limit - 1))] for k in range(limit)]


class AlignmentData:
    """Training records by index, encoded when asked for; records without a strict preference are dropped and counted.

    ``sources`` lists the source names of the records, :data:`UNKNOWN` for responses without one.

    Args:
        records: canonical records of the train split.
        factors: h per record, same order; ones where the objective does not use h.
        reference: ``record_id, response_index, logp``, any order, covering every response of ``records``.

    Raises:
        DataError: a response has no reference log-probability, or no record has a preference.
    """

    def __init__(self, records: pa.Table, factors: np.ndarray, reference: pa.Table, encoder: Encoder, max_responses: int):
        lookup = dict(
            zip(
                zip(reference["record_id"].to_pylist(), reference["response_index"].to_pylist(), strict=True),
                reference["logp"].to_numpy().tolist(),
                strict=True,
            )
        )
        self._records, self._factors, self._lookup, self._encoder = records, factors, lookup, encoder
        self.sources = sorted({name or UNKNOWN for names in records["sources"].to_pylist() for name in names})
        self._chosen: list[list[int]] = []
        self._rows: list[int] = []
        self.dropped = 0
        rewards_of = records["rewards"].to_pylist()
        for row, rewards in enumerate(rewards_of):
            measured = [math.nan if r is None else r for r in rewards]
            chosen = choose_responses(measured, max_responses)
            if len(chosen) >= 2 and measured[chosen[0]] > measured[chosen[-1]]:
                self._rows.append(row)
                self._chosen.append(chosen)
            else:
                self.dropped += 1
        if not self._rows:
            raise DataError(
                f"none of {len(records)} training records has a preference: rewards are missing or all tied",
                hint="map the right column with data.train[i].columns.rewards (or ranks), or give chosen/rejected pairs",
            )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> AlignmentRecord:
        row, chosen = self._rows[index], self._chosen[index]
        record = self._records.slice(row, 1).to_pylist()[0]
        try:
            reference = [self._lookup[record["record_id"], i] for i in chosen]
        except KeyError as error:
            raise DataError(
                f"record {record['record_id']!r} has no reference log-probability",
                hint="the reference stage was computed for other records; delete its output and run again",
            ) from error
        return AlignmentRecord(
            row=row,
            responses=[self._encoder.encode(record["prompt"], record["responses"][i]) for i in chosen],
            rewards=[record["rewards"][i] for i in chosen],
            reference_logps=reference,
            factor=float(self._factors[row]),
            sources=[self.sources.index(record["sources"][i] or UNKNOWN) for i in chosen],
        )

    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """Tokens of each record, its prompt once, int64 (len,)."""
        return np.array([packed_tokens(self[i].responses) for i in range(len(self))])
