"""Packing records into one sequence: nothing padded, each prompt once, and the way back."""

from __future__ import annotations

import torch

from dora_core.data.encoding import EncodedResponse
from dora_core.models.packing import Segment, by_prompt, pack, packed_tokens
from tests.dora_core.models.packed_records import RECORDS, record


def test_nothing_is_padded_and_a_prompt_is_there_once() -> None:
    rows = pack(RECORDS)
    # 5+2+2, 3+3+0+6, 6+4, 1+0+0: the last token of a response predicts nothing
    assert len(rows.ids_S) == 9 + 12 + 10 + 1 == sum(map(len, rows.segments))
    assert rows.positions_S.tolist() == [*range(5), 5, 6, 5, 6, *range(3), 3, 4, 5, 3, 4, 5, 6, 7, 8, *range(6), 6, 7, 8, 9, 0]
    assert rows.targets_T.tolist() == [t for rows in RECORDS for r in rows for t in r.response_ids]
    assert [packed_tokens(r) for r in RECORDS] == [11, 15, 11, 3]


def test_a_token_is_predicted_by_the_one_before_it_in_its_own_response() -> None:
    """The first token of every response is predicted by the prompt's last, regardless of the tokens between them."""
    rows = pack(RECORDS[:2])
    assert rows.segments == (Segment(5, (2, 2)), Segment(3, (3, 0, 6))) and rows.rows == 5
    assert rows.row_T.tolist() == [0] * 3 + [1] * 3 + [2] * 4 + [3] + [4] * 7
    assert rows.index_T.tolist() == [4, 5, 6, 4, 7, 8, 11, 12, 13, 14, 11, 11, 15, 16, 17, 18, 19, 20]
    ids = rows.ids_S.tolist()
    assert ids[:9] == [*RECORDS[0][0].prompt_ids, *RECORDS[0][0].response_ids[:-1], *RECORDS[0][1].response_ids[:-1]]


def test_moving_keeps_every_field() -> None:
    rows = pack(RECORDS)
    moved = rows.to(torch.device("meta"))
    assert moved.segments == rows.segments and moved.rows == rows.rows
    assert {moved.ids_S.device.type, moved.positions_S.device.type, moved.index_T.device.type, moved.targets_T.device.type} == {"meta"}
    assert moved.row_T.shape == rows.row_T.shape and moved.row_T.device.type == "meta"


def test_neighbours_with_one_prompt_are_one_record() -> None:
    responses = [r for rows in RECORDS for r in rows]
    assert by_prompt(responses) == RECORDS
    again = record(5, 2, seed=1)
    assert by_prompt([*RECORDS[0], *RECORDS[2], *again]) == [RECORDS[0], RECORDS[2], again], "apart, so computed again"


def test_turns_of_others_are_read_and_not_predicted() -> None:
    """[1 2 | 3 4 5 6 | 8 9] of the responses 3 4 5 6 7, of which 5 and 6 are not learned, and 8 9 10."""
    rows = pack([[EncodedResponse([1, 2], [3, 4, 5, 6, 7], 0, ((2, 4),)), EncodedResponse([1, 2], [8, 9, 10], 0)]])
    assert rows.ids_S.tolist() == [1, 2, 3, 4, 5, 6, 8, 9] and rows.segments == (Segment(2, (4, 2)),)
    assert rows.targets_T.tolist() == [3, 4, 7, 8, 9, 10] and rows.row_T.tolist() == [0, 0, 0, 1, 1, 1]
    assert rows.index_T.tolist() == [1, 2, 5, 1, 6, 7]
