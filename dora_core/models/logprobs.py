"""Log-probabilities of responses under a causal language model.

Records are packed (``packing.py``): a prompt is computed once for all its responses and nothing is padded. A model that cannot
be packed, found by comparing both ways once, gets padded rows, each with its own prompt, and a warning is logged. Either way only positions
that predict a response token meet the vocabulary, in chunks that are recomputed in the backward pass (``linear_logps.py``).
Softmax and sums are float32 whatever the model's dtype (float64 stays float64).

Shape legend: R rows (one per response), S sequence length, T response tokens of the whole batch, H width, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from dora_core.data.encoding import EncodedResponse
from dora_core.errors import ModelError
from dora_core.models.batching import TokenBudget, in_batches
from dora_core.models.linear_logps import linear_log_collisions, linear_logps
from dora_core.models.packed_attention import NAME, packed_hidden
from dora_core.models.packing import PackedRows, by_prompt, pack, packed_tokens

log = logging.getLogger("dora.logprobs")

Value = TypeVar("Value")


@dataclass(frozen=True)
class ResponseRows:
    """Right-padded rows, each prompt and response. ``targets_RS[r, s]`` is the token that position s predicts, −1 where that is not a
    response token."""

    ids_RS: Tensor
    attention_RS: Tensor
    targets_RS: Tensor

    def to(self, device: torch.device) -> ResponseRows:
        return ResponseRows(self.ids_RS.to(device), self.attention_RS.to(device), self.targets_RS.to(device))


def collate(responses: Sequence[EncodedResponse], pad_id: int) -> ResponseRows:
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
    return ResponseRows(ids, attention, targets)


class ResponseLogps(nn.Module):
    """Wraps a causal LM so that ``forward`` gives Σ_t log π per row. Wrap *this* in DDP or FSDP: they hook ``forward``.

    Args:
        model: any ``…ForCausalLM`` whose logits are its output embedding applied to its body's last hidden state,
            with or without peft adapters.
        share_prefix: compute a prompt once for all its responses. Only read where the model can be packed.

    Attributes:
        unpacked_because: the reason for padded rows and repeated prompts; empty if records are packed.

    Raises:
        ModelError: the model transforms its logits in another way (soft-capping, scaling), found by comparing both paths once.
    """

    def __init__(self, model: PreTrainedModel, *, share_prefix: bool = True):
        super().__init__()
        self.model = model
        self._share_prefix = share_prefix
        training = model.training
        model.eval()
        self._check_head()
        self.unpacked_because = self._why_not_packed()
        model.train(training)
        if self.unpacked_because:
            log.warning("prompts are computed once per response, not once per record: %s", self.unpacked_because)

    @property
    def plain_model(self) -> PreTrainedModel:
        """The ``…ForCausalLM`` below a peft wrapper, or the model itself."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def collate(self, records: Sequence[Sequence[EncodedResponse]], pad_id: int) -> PackedRows | ResponseRows:
        """The batch for :meth:`forward`; rows are the responses of all records, in order. A record's responses share their prompt."""
        rows = list(chain.from_iterable(records))
        if self.unpacked_because or max(map(len, rows)) > self._window:
            return collate(rows, pad_id)
        return pack(records if self._share_prefix else [[row] for row in rows])

    @property
    def shares_prefix(self) -> bool:
        """Whether a record's prompt passes through the model once, and not once per response."""
        return self._share_prefix and not self.unpacked_because

    def tokens(self, record: Sequence[EncodedResponse]) -> int:
        """Tokens that pass through the model for a record, without padding; a token budget counts these."""
        return packed_tokens(record) if self.shares_prefix else sum(map(len, record))

    def forward(self, rows: PackedRows | ResponseRows, *, collisions: bool = False) -> Tensor:
        """Σ_t log π(y_t | x, y_<t), nats, shape (R,), at least float32.

        Args:
            collisions: return (2, R) instead: the same, and Σ_t log Σ_v π(v | x, y_<t)², without gradient, at the cost of one more pass
                over the logits.
        """
        hidden_TH, targets_T, row_T, count = self._hidden(rows)
        head = self.plain_model.get_output_embeddings()
        logps_T = _token_logps(head, hidden_TH, targets_T)
        logps_R = logps_T.new_zeros(count).index_add(0, row_T, logps_T)
        if not collisions:
            return logps_R
        collisions_T = _token_log_collisions(head, hidden_TH)
        return torch.stack([logps_R, logps_T.new_zeros(count).index_add(0, row_T, collisions_T)])

    def represent(self, rows: PackedRows | ResponseRows) -> tuple[Tensor, Tensor]:
        """Compute Σ_t log π, (R,), and the mean over response tokens of the last hidden state that predicts them, (R, H); ≥ float32."""
        hidden_TH, targets_T, row_T, count = self._hidden(rows)
        logps_T = _token_logps(self.plain_model.get_output_embeddings(), hidden_TH, targets_T)
        wide_TH = hidden_TH.to(logps_T.dtype)
        sums_RH = wide_TH.new_zeros(count, wide_TH.shape[1]).index_add(0, row_T, wide_TH)
        tokens_R = row_T.bincount(minlength=count).clamp(min=1)
        return logps_T.new_zeros(count).index_add(0, row_T, logps_T), sums_RH / tokens_R[:, None]

    def _hidden(self, rows: PackedRows | ResponseRows) -> tuple[Tensor, Tensor, Tensor, int]:
        """Hidden states that predict response tokens, (T, H), these tokens, the row of each, and the number of rows."""
        body = self.plain_model.base_model
        if isinstance(rows, PackedRows):
            return packed_hidden(body, rows).index_select(0, rows.index_T), rows.targets_T, rows.row_T, rows.rows
        hidden_RSH = body(input_ids=rows.ids_RS, attention_mask=rows.attention_RS, use_cache=False).last_hidden_state
        where_RS = rows.targets_RS >= 0
        return hidden_RSH[where_RS], rows.targets_RS[where_RS], where_RS.nonzero()[:, 0], len(rows.ids_RS)

    @property
    def _window(self) -> float:
        """Longest sequence in which every token may attend to every earlier one."""
        config = self.plain_model.config
        slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
        return (getattr(config, "sliding_window", None) if slides else None) or float("inf")

    @torch.no_grad()
    def _check_head(self) -> None:
        model, name = self.plain_model, type(self.plain_model).__name__
        head = model.get_output_embeddings()
        if head is None or model.base_model is model:
            raise ModelError(
                f"{name} is not a causal language model with an output embedding", hint="use a …ForCausalLM model (Llama, Qwen, …)"
            )
        ids = torch.arange(4, device=head.weight.device)[None] % model.config.vocab_size
        expected, ours = (
            model(input_ids=ids, use_cache=False).logits,
            head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state),
        )
        if not torch.allclose(expected.float(), ours.float(), rtol=1e-2, atol=1e-2):
            raise ModelError(
                f"{name} transforms its logits after the output embedding (soft-capping or scaling), which is not supported",
                hint="use a model whose logits are a plain projection (Llama, Mistral, Qwen, GPT-2, …)",
            )

    @torch.no_grad()
    def _why_not_packed(self) -> str:
        """Switch the model to packed attention if its log-probabilities stay the same; otherwise restore it and return the reason."""
        model, name = self.plain_model, type(self.plain_model).__name__
        config = model.config
        if not getattr(model, "_supports_attention_backend", False):
            return f"{name} has an attention of its own"
        if dropout := max(getattr(config, key, 0.0) or 0.0 for key in ("attention_dropout", "attn_pdrop")):
            return f"{name} has attention dropout {dropout}"
        before, device = config._attn_implementation, model.get_output_embeddings().weight.device
        records = [[EncodedResponse([1, 2, 3], ids, 0) for ids in ([4, 5, 6], [7], [8, 9])], [EncodedResponse([3, 1], [2, 4], 0)]]
        expected = self(collate(list(chain.from_iterable(records)), 0).to(device))
        model.set_attn_implementation(NAME)
        try:
            got = self(pack(records).to(device))
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = f"{name} does not take packed records ({str(error).splitlines()[0]})"
        else:
            # Sums of a few log-probabilities, each rounded in the model's dtype.
            if torch.allclose(got, expected, rtol=3 * torch.finfo(model.dtype).eps ** 0.5, atol=1e-3):
                return ""
            reason = f"{name} gives other log-probabilities for packed records (by {(got - expected).abs().max().item():.3g} nats)"
        model.set_attn_implementation(before)
        return reason


def _token_logps(head: nn.Module, hidden_TH: Tensor, targets_T: Tensor) -> Tensor:
    if type(head) is nn.Linear:
        return linear_logps(hidden_TH, head.weight, head.bias, targets_T)
    # An adapted or otherwise wrapped head is called as a module: all logits of response positions, recomputed in the backward pass.
    logps_T: Tensor = checkpoint(_module_logps, head, hidden_TH, targets_T, use_reentrant=False)
    return logps_T


@torch.no_grad()
def _token_log_collisions(head: nn.Module, hidden_TH: Tensor) -> Tensor:
    if type(head) is nn.Linear:
        return linear_log_collisions(hidden_TH, head.weight, head.bias)
    logits_TV: Tensor = head(hidden_TH)
    logits_TV = logits_TV if logits_TV.dtype == torch.float64 else logits_TV.float()
    return (2 * logits_TV).logsumexp(dim=1) - 2 * logits_TV.logsumexp(dim=1)


def _module_logps(head: nn.Module, hidden_TH: Tensor, targets_T: Tensor) -> Tensor:
    logits_TV: Tensor = head(hidden_TH)
    logits_TV = logits_TV if logits_TV.dtype == torch.float64 else logits_TV.float()
    return logits_TV.gather(1, targets_T[:, None]).squeeze(1) - logits_TV.logsumexp(dim=1)


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
