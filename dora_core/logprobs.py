"""Log-probabilities of responses under a causal language model.

Shape legend: R rows (one per response), S padded sequence length, T response tokens of the whole batch, H width, V vocabulary.

Only positions that predict a response token go through the vocabulary projection, in chunks that are recomputed in the
backward pass: the [R, S, V] logits of a plain forward never exist. Softmax and sums are float32 whatever the model's dtype
(float64 stays float64).

Left out: prefix sharing between the responses of one prompt, and packing; each row carries its own prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from dora_core.batching import token_batches
from dora_core.errors import ModelError
from dora_core.text import EncodedResponse

CHUNK_LOGITS = 2**24
"""Logits alive at once: 64 MiB in float32."""


@dataclass(frozen=True)
class ResponseRows:
    """Right-padded rows. ``targets_RS[r, s]`` is the token that position s predicts, −1 where that is no response token."""

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

    Raises:
        ModelError: the model transforms its logits in another way (soft-capping, scaling), found by comparing both paths once.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self._check_head()

    @property
    def plain_model(self) -> PreTrainedModel:
        """The ``…ForCausalLM`` below a peft wrapper, or the model itself."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def forward(self, rows: ResponseRows) -> Tensor:
        """Σ_t log π(y_t | x, y_<t), nats, shape (R,), at least float32."""
        body, head = self.plain_model.base_model, self.plain_model.get_output_embeddings()
        hidden_RSH = body(input_ids=rows.ids_RS, attention_mask=rows.attention_RS, use_cache=False).last_hidden_state
        where_RS = rows.targets_RS >= 0
        hidden_TH, targets_T = hidden_RSH[where_RS], rows.targets_RS[where_RS]
        chunk = max(1, CHUNK_LOGITS // self.plain_model.config.vocab_size)
        recompute = torch.is_grad_enabled() and len(targets_T) > chunk
        parts = [
            checkpoint(_token_logps, head, h, t, use_reentrant=False) if recompute else _token_logps(head, h, t)
            for h, t in zip(hidden_TH.split(chunk), targets_T.split(chunk), strict=True)
        ]
        logps_T = torch.cat(parts)
        row_T = where_RS.nonzero()[:, 0]
        return logps_T.new_zeros(len(rows.ids_RS)).index_add(0, row_T, logps_T)

    @torch.no_grad()
    def _check_head(self) -> None:
        model, name = self.plain_model, type(self.plain_model).__name__
        head = model.get_output_embeddings()
        if head is None or model.base_model is model:
            raise ModelError(
                f"{name} is not a causal language model with an output embedding", hint="use a …ForCausalLM model (Llama, Qwen, …)"
            )
        ids = torch.arange(4, device=head.weight.device)[None] % model.config.vocab_size
        training = model.training
        model.eval()
        expected, ours = (
            model(input_ids=ids, use_cache=False).logits,
            head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state),
        )
        model.train(training)
        if not torch.allclose(expected.float(), ours.float(), rtol=1e-2, atol=1e-2):
            raise ModelError(
                f"{name} transforms its logits after the output embedding (soft-capping or scaling), which is not supported",
                hint="use a model whose logits are a plain projection (Llama, Mistral, Qwen, GPT-2, …)",
            )


def _token_logps(head: nn.Module, hidden_TH: Tensor, targets_T: Tensor) -> Tensor:
    logits_TV = head(hidden_TH)
    logits_TV = logits_TV.float() if logits_TV.dtype in (torch.float16, torch.bfloat16) else logits_TV
    return logits_TV.gather(1, targets_T[:, None]).squeeze(1) - logits_TV.logsumexp(dim=1)


@torch.no_grad()
def score_responses(
    logps: ResponseLogps, responses: Sequence[EncodedResponse], pad_id: int, budget: int, device: torch.device
) -> list[float]:
    """Inference: Σ log π of each response, in the given order, in length-sorted token-budget batches."""
    scores = [0.0] * len(responses)
    for batch in token_batches([len(r) for r in responses], budget):
        rows = collate([responses[i] for i in batch], pad_id).to(device)
        for index, score in zip(batch, logps(rows).tolist(), strict=True):
            scores[index] = score
    return scores
