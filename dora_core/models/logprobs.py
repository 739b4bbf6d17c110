"""Log-probabilities of responses under a causal language model.

Records are packed (``packing.py``): a prompt is computed once for all its responses and nothing is padded. A model or a length that cannot
be packed, decided on a small copy (``row_layout.py``), gets padded rows, each with its own prompt, and a warning is logged. Either way only
positions that predict a response token meet the vocabulary, in chunks that are recomputed in the backward pass (``linear_logps.py``).

Shape legend: R rows (one per response).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from dora_core.data.encoding import EncodedResponse
from dora_core.errors import ModelError
from dora_core.models.batching import TokenBudget, in_batches
from dora_core.models.packed_attention import NAME
from dora_core.models.packing import PackedRows, by_prompt, pack, packed_tokens
from dora_core.models.response_forward import forward_logps, forward_representations
from dora_core.models.response_rows import ResponseRows, collate
from dora_core.models.row_layout import Way, positions, row_layout

log = logging.getLogger("dora.logprobs")

Value = TypeVar("Value")


class ResponseLogps(nn.Module):
    """Wraps a causal LM so that ``forward`` gives Σ_t log π per row. Wrap *this* in DDP or FSDP: they hook ``forward``.

    Args:
        model: any ``…ForCausalLM`` whose logits are its output embedding applied to its body's last hidden state, scaled or soft-capped
            as its configuration says, with or without peft adapters. Without dropout (``load_policy`` switches it off).
        share_prefix: compute a prompt once for all its responses. Only read where the model can be packed.
        device: where the model will be computed; its present device by default.

    Attributes:
        unpacked_because: the reason for padded rows and repeated prompts; empty if records are packed.

    Raises:
        ModelError: the model transforms its logits in another way, or no way of giving it rows computes what it computes alone.
    """

    def __init__(self, model: PreTrainedModel, *, share_prefix: bool = True, device: torch.device | None = None):
        super().__init__()
        self.model = model
        self._share_prefix = share_prefix
        plain, name = self.plain_model, type(self.plain_model).__name__
        self._positions = positions(plain.config) or float("inf")
        self._layout = row_layout(plain, device or plain.device)
        if Way.REFUSED is self._layout.short:
            raise ModelError(
                f"{name} cannot be read row by row: {'; '.join(self._layout.reasons)}", hint="use another model; see dora_core/README.md"
            )
        self._packs = self._layout.short is Way.PACKED
        reasons = list(self._layout.reasons)
        if self._packs and (dropout := _attention_dropout(plain)):
            self._packs, reasons = False, [f"{name} has attention dropout {dropout}", *reasons]
        if self._packs:
            plain.set_attn_implementation(NAME)
        self.unpacked_because = "; ".join(reasons)
        if self.unpacked_because:
            log.warning("prompts are computed once per response, not once per record: %s", self.unpacked_because)

    @property
    def plain_model(self) -> PreTrainedModel:
        """The ``…ForCausalLM`` below a peft wrapper, or the model itself."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def collate(self, records: Sequence[Sequence[EncodedResponse]], pad_id: int) -> PackedRows | ResponseRows:
        """The batch for :meth:`forward`; rows are the responses of all records, in order. A record's responses share their prompt.

        Raises:
            ModelError: rows are longer than the model can be read correctly.
        """
        rows = list(chain.from_iterable(records))
        longest = max(map(len, rows))
        if longest > self._positions:
            raise ModelError(
                f"{longest} tokens of prompt and response do not fit into the {self._positions:.0f} positions of "
                f"{type(self.plain_model).__name__}",
                hint="lower text.max_prompt_tokens and text.max_response_tokens so that their sum fits, or use a model with more positions",
            )
        way = self._layout.of(longest)
        if way is Way.REFUSED:
            raise ModelError(
                f"a prompt and response of {longest} tokens: {'; '.join(self._layout.reasons)}",
                hint=f"set text.max_prompt_tokens and text.max_response_tokens so that their sum is at most {self._layout.threshold:.0f}",
            )
        if way is Way.PACKED and self._packs:
            return pack(records if self._share_prefix else [[row] for row in rows])
        return collate(rows, pad_id, by_length=way is Way.BY_LENGTH)

    @property
    def shares_prefix(self) -> bool:
        """Whether a record's prompt passes through the model once, and not once per response."""
        return self._share_prefix and self._packs

    def tokens(self, record: Sequence[EncodedResponse]) -> int:
        """Tokens that pass through the model for a record, without padding; a token budget counts these."""
        shared = self.shares_prefix and self._layout.of(max(map(len, record))) is Way.PACKED
        return packed_tokens(record) if shared else sum(map(len, record))

    def forward(self, rows: PackedRows | ResponseRows, *, collisions: bool = False) -> Tensor:
        """Σ_t log π(y_t | x, y_<t), nats, shape (R,), at least float32.

        Args:
            collisions: return (2, R) instead: the same, and Σ_t log Σ_v π(v | x, y_<t)², without gradient, at the cost of one more pass
                over the logits.
        """
        self._refuse_sharded(rows)
        return forward_logps(self.plain_model, rows, self._layout.transform, collisions=collisions)

    def represent(self, rows: PackedRows | ResponseRows) -> tuple[Tensor, Tensor]:
        """Compute Σ_t log π, (R,), and the mean over response tokens of the last hidden state that predicts them, (R, H); ≥ float32."""
        self._refuse_sharded(rows)
        return forward_representations(self.plain_model, rows, self._layout.transform)

    def _refuse_sharded(self, rows: PackedRows | ResponseRows) -> None:
        if isinstance(rows, ResponseRows) and rows.by_length and type(self).__name__.startswith("FSDP"):
            raise ModelError(  # ranks would wait for one another: each has another number of passes
                f"rows longer than {self._layout.threshold:.0f} tokens are read by length, which FSDP cannot do",
                hint="set execution's strategy to ddp, or text.max_prompt_tokens and text.max_response_tokens so that their sum is less",
            )


def _attention_dropout(model: PreTrainedModel) -> float:
    config = model.config.get_text_config()
    return max(float(getattr(config, key, 0.0) or 0.0) for key in ("attention_dropout", "attn_pdrop"))


@torch.no_grad()
def represent_responses(
    logps: ResponseLogps, responses: Sequence[EncodedResponse], pad_id: int, budget: int | TokenBudget, device: torch.device
) -> NDArray[np.float64]:
    """Inference: (Σ log π, mean hidden state) of each response, shape (N, 1 + H), in the given order; otherwise as
    :func:`score_responses`."""

    def represent(rows: PackedRows | ResponseRows) -> list[list[float]]:
        logps_R, hidden_RH = logps.represent(rows)
        found: list[list[float]] = torch.cat([logps_R[:, None], hidden_RH], dim=1).tolist()
        return found

    return np.array(_by_records(logps, responses, pad_id, budget, device, represent))


@torch.no_grad()
def score_responses(
    logps: ResponseLogps, responses: Sequence[EncodedResponse], pad_id: int, budget: int | TokenBudget, device: torch.device
) -> list[float]:
    """Inference: Σ log π of each response, in the given order, in length-sorted batches of at most ``budget`` tokens.

    Neighbours with the same prompt share its computation: keep the responses of a record together.
    """

    def score(rows: PackedRows | ResponseRows) -> list[float]:
        found: list[float] = logps(rows).tolist()
        return found

    return _by_records(logps, responses, pad_id, budget, device, score)


def _by_records(
    logps: ResponseLogps,
    responses: Sequence[EncodedResponse],
    pad_id: int,
    budget: int | TokenBudget,
    device: torch.device,
    of_rows: Callable[[PackedRows | ResponseRows], list[Value]],
) -> list[Value]:
    """``of_rows`` of batches of records, put in the order of the responses."""
    records = by_prompt(responses)
    first = list(accumulate(map(len, records), initial=0))
    values: list[Value | None] = [None] * len(responses)

    def of_batch(batch: NDArray[np.int64]) -> list[Value]:
        return of_rows(logps.collate([records[i] for i in batch], pad_id).to(device))

    for batch, found in in_batches(of_batch, [logps.tokens(record) for record in records], TokenBudget.of(budget)):
        places = chain.from_iterable(range(first[i], first[i + 1]) for i in batch)
        for place, value in zip(places, found, strict=True):
            values[place] = value
    return cast("list[Value]", values)
