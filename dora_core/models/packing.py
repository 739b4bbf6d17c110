"""Records as one sequence without padding: [prompt | y_1 | … | y_N] [prompt | y_1 | …] …, each prompt once.

A response's tokens sit at the positions they would have right after the prompt, and attend to the prompt and to their own
response only (``packed_attention.py`` builds the mask from ``segments``). A response's last token predicts nothing and is left
out; turns of others within a response are read and not predicted.

Legend: R responses, S packed tokens, T learned response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dora_core.data.encoding import EncodedResponse


@dataclass(frozen=True)
class Segment:
    """One record's place in the packed sequence: ``prompt`` tokens, then the tokens of each response, one after the other."""

    prompt: int
    responses: tuple[int, ...]

    def __len__(self) -> int:
        return self.prompt + sum(self.responses)


@dataclass(frozen=True)
class PackedRows:
    """Input of a model for log π of R responses, all in one row.

    Attributes:
        ids_S, positions_S: token ids and their positions, int64.
        segments: the records, in order; their lengths add up to S.
        index_T: position in the packed sequence that predicts each response token.
        targets_T: the predicted token.
        row_T: the response it belongs to, 0 … R−1, ascending.
        rows: R.
    """

    ids_S: Tensor
    positions_S: Tensor
    segments: tuple[Segment, ...]
    index_T: Tensor
    targets_T: Tensor
    row_T: Tensor
    rows: int

    def to(self, device: torch.device) -> PackedRows:
        names = ("ids_S", "positions_S", "index_T", "targets_T", "row_T")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


def pack(records: Sequence[Sequence[EncodedResponse]]) -> PackedRows:
    """Pack records; all responses of one record have the same prompt, of at least one token."""
    ids: list[list[int]] = []
    positions: list[range] = []
    index: list[Sequence[int]] = []
    segments = []
    start = 0
    for responses in records:
        prompt = responses[0].prompt_ids
        end = start + len(prompt)
        ids.append(prompt)
        positions.append(range(len(prompt)))
        place = end
        for response in responses:
            inputs = response.response_ids[:-1]
            ids.append(inputs)
            positions.append(range(len(prompt), len(prompt) + len(inputs)))
            if response.context:
                index.append([place + learned - 1 if learned else end - 1 for learned in response.learned_places()])
            else:
                index += [(end - 1,), range(place, place + len(inputs))]  # the prompt's last token predicts the first one
            place += len(inputs)
        segments.append(Segment(len(prompt), tuple(len(r.response_ids) - 1 for r in responses)))
        start = place
    rows = list(chain.from_iterable(records))
    return PackedRows(
        ids_S=torch.tensor(list(chain.from_iterable(ids))),
        positions_S=torch.tensor(list(chain.from_iterable(positions))),
        segments=tuple(segments),
        index_T=torch.tensor(list(chain.from_iterable(index))),
        targets_T=torch.tensor(list(chain.from_iterable(map(_learned_ids, rows)))),
        row_T=torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([r.learned for r in rows])),
        rows=len(rows),
    )


def _learned_ids(response: EncodedResponse) -> Sequence[int]:
    ids = response.response_ids
    return [ids[place] for place in response.learned_places()] if response.context else ids


def by_prompt(responses: Sequence[EncodedResponse]) -> list[list[EncodedResponse]]:
    """Neighbours with the same prompt as one record."""
    return [list(group) for _, group in groupby(responses, key=lambda r: r.prompt_ids)]


def packed_tokens(record: Sequence[EncodedResponse]) -> int:
    """Tokens of a record, its prompt once."""
    return len(record[0].prompt_ids) + sum(len(r.response_ids) for r in record)
