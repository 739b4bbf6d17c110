"""Mixing of inputs: how many copies of a record are in the data, and which records of a large input.

All decisions follow from the record's own content, so that a new row of an input moves no other one (except, with ``max_rows``, the one
whose place it takes).
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable

from dora_core.data.records import Record


def content_key(record: Record) -> int:
    """128 bits of the content of a record, without its id."""
    return int.from_bytes(hashlib.sha256(record.content.encode()).digest()[:16], "big")


def copies(key: int, expected: float) -> int:
    """Number of copies: the whole part of ``expected``, and one more for a share of the keys that is its fraction."""
    whole = int(expected)
    return whole + (_spread(key, b"copies") < (expected - whole) * 2.0**64)


class Selection:
    """The ``size`` records of an input with the smallest hashes of their content; equal contents share one place.

    Args:
        keys: of all good records.
    """

    def __init__(self, keys: Iterable[int], size: int):
        smallest: list[int] = []  # negated: a heap with the largest in front
        there = set[int]()
        for key in keys:
            rank = _spread(key, b"selection")
            if rank in there:
                continue
            if len(smallest) < size:
                heapq.heappush(smallest, -rank)
                there.add(rank)
            elif rank < -smallest[0]:
                there.discard(-heapq.heapreplace(smallest, -rank))
                there.add(rank)
        self._limit = -smallest[0] if len(smallest) == size else None

    def __contains__(self, key: int) -> bool:
        return self._limit is None or _spread(key, b"selection") <= self._limit


def _spread(key: int, purpose: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key.to_bytes(16, "big"), digest_size=8, person=purpose).digest(), "big")
