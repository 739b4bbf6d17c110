"""Integer sequences of different lengths in one flat array: token ids without a Python object per token or row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Ragged:
    """N sequences one after the other: sequence i is ``values[start[i] : start[i + 1]]``; ``start`` (N + 1,) begins with 0."""

    values: Integers
    start: Integers

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> Ragged:
        start = _starts(np.fromiter(map(len, sequences), np.int64, len(sequences)))
        return cls(np.fromiter(chain.from_iterable(sequences), np.int64, start[-1]), start)

    def __len__(self) -> int:
        return len(self.start) - 1

    def __getitem__(self, rows: NDArray[np.integer]) -> Ragged:
        """The sequences of these indices, in their order."""
        return self._gather(self.start[rows], self.lengths[rows])

    @property
    def lengths(self) -> Integers:
        return np.diff(self.start)

    @property
    def positions(self) -> Integers:
        """Position of each value within its sequence, from 0."""
        return np.arange(len(self.values)) - np.repeat(self.start[:-1], self.lengths)

    def tails(self, skip_N: Integers) -> Ragged:
        """Every sequence without its first ``skip_N`` values."""
        return self._gather(self.start[:-1] + skip_N, self.lengths - skip_N)

    def padded(self, fill: int) -> Integers:
        """Right-padded matrix (N, longest)."""
        inside = np.arange(self.lengths.max()) < self.lengths[:, None]
        out = np.full(inside.shape, fill, dtype=np.int64)
        out[inside] = self.values
        return out

    def _gather(self, begin: Integers, lengths: Integers) -> Ragged:
        start = _starts(lengths)
        return Ragged(self.values[np.arange(start[-1]) + np.repeat(begin - start[:-1], lengths)], start)


def _starts(lengths: Integers) -> Integers:
    start = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=start[1:])
    return start
