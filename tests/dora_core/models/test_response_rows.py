"""Rows of one length meet in one pass, unpadded; otherwise all rows do."""

from __future__ import annotations

import torch

from dora_core.data.encoding import EncodedResponse
from dora_core.models.response_rows import collate

ROWS = [EncodedResponse([1, 2], [3], 0), EncodedResponse([4], [5, 6, 7], 0), EncodedResponse([8], [9, 10], 0)]


def test_targets_are_the_response_tokens_at_the_position_before() -> None:
    rows = collate(ROWS, 0)
    assert rows.ids_RS.tolist() == [[1, 2, 3, 0], [4, 5, 6, 7], [8, 9, 10, 0]]
    assert rows.attention_RS.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert rows.targets_RS.tolist() == [[-1, 3, -1, -1], [5, 6, 7, -1], [9, 10, -1, -1]]
    [(where, part)] = rows.parts()
    assert where.tolist() == [0, 1, 2] and part is rows


def test_by_length() -> None:
    (three, short), (four, long) = collate(ROWS, 0, by_length=True).to(torch.device("cpu")).parts()
    assert (three.tolist(), short.ids_RS.tolist()) == ([0, 2], [[1, 2, 3], [8, 9, 10]])
    assert (four.tolist(), long.ids_RS.tolist()) == ([1], [[4, 5, 6, 7]])
    assert short.targets_RS.tolist() == [[-1, 3, -1], [9, 10, -1]] and short.attention_RS.all()


def test_turns_of_others_are_no_targets() -> None:
    """[1 2 | 3 4 5 6 7] with 5 and 6 not learned: positions 1, 2 and 5 predict 3, 4 and 7."""
    rows = collate([EncodedResponse([1, 2], [3, 4, 5, 6, 7], 0, ((2, 4),))], 0)
    assert rows.targets_RS.tolist() == [[-1, 3, 4, -1, -1, 7, -1]]
