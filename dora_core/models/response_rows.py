"""Right-padded rows, each prompt and response, for models whose records cannot be packed.

Legend: R rows (one per response), S sequence length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dora_core.data.encoding import EncodedResponse


@dataclass(frozen=True)
class ResponseRows:
    """Input of a model for log π of R responses.

    Attributes:
        ids_RS, attention_RS: token ids, and 1 where there is a token.
        targets_RS: the token that position s predicts, −1 where that is not a learned token of the response.
        by_length: rows of different length must not meet in one pass of the model.
    """

    ids_RS: Tensor
    attention_RS: Tensor
    targets_RS: Tensor
    by_length: bool = False

    def to(self, device: torch.device) -> ResponseRows:
        return replace(self, **{name: getattr(self, name).to(device) for name in ("ids_RS", "attention_RS", "targets_RS")})

    def parts(self) -> list[tuple[Tensor, ResponseRows]]:
        """Row numbers and rows of every pass of the model; rows of one length are not padded."""
        if not self.by_length:
            return [(torch.arange(len(self.ids_RS), device=self.ids_RS.device), self)]
        length_R = self.attention_RS.sum(dim=1)
        found = []
        for length in sorted(set(length_R.tolist())):
            where = (length_R == length).nonzero().squeeze(1)
            ids, attention, targets = (x[where, :length] for x in (self.ids_RS, self.attention_RS, self.targets_RS))
            found.append((where, ResponseRows(ids, attention, targets)))
        return found


def collate(responses: Sequence[EncodedResponse], pad_id: int, *, by_length: bool = False) -> ResponseRows:
    """Pad encoded responses to the longest of them."""
    longest = max(len(r) for r in responses)
    ids = torch.full((len(responses), longest), pad_id)
    targets = torch.full((len(responses), longest), -1)
    attention = torch.zeros((len(responses), longest), dtype=torch.long)
    for row, response in enumerate(responses):
        prompt = len(response.prompt_ids)
        tokens = torch.tensor(response.prompt_ids + response.response_ids)
        ids[row, : len(tokens)] = tokens
        attention[row, : len(tokens)] = 1
        targets[row, prompt - 1 : len(tokens) - 1] = tokens[prompt:]  # position s predicts token s + 1
        for start, stop in response.context:
            targets[row, prompt - 1 + start : prompt - 1 + stop] = -1
    return ResponseRows(ids, attention, targets, by_length)
