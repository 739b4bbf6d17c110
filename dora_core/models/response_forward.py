"""From rows of tokens to Σ_t log π per row: the model's body, then its output embedding at the positions that predict a response token.

Softmax and sums are float32 whatever the model's dtype (float64 stays float64).

Legend: R rows (one per response), S sequence length, T response tokens of the whole batch, H width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from dora_core.models.linear_logps import LogitTransform, linear_log_collisions, linear_logps
from dora_core.models.packed_attention import packed_hidden
from dora_core.models.packing import PackedRows
from dora_core.models.parts import text_body
from dora_core.models.response_rows import ResponseRows


def forward_logps(
    model: PreTrainedModel, rows: PackedRows | ResponseRows, transform: LogitTransform, *, collisions: bool = False
) -> Tensor:
    """Σ_t log π(y_t | x, y_<t), nats, shape (R,), at least float32.

    Args:
        collisions: return (2, R) instead: the same, and Σ_t log Σ_v π(v | x, y_<t)², without gradient, at the cost of one more pass
            over the logits.
    """
    hidden_TH, targets_T, row_T, count = _hidden(text_body(model), rows)
    head = model.get_output_embeddings()
    logps_T = _token_logps(head, hidden_TH, targets_T, transform)
    logps_R = logps_T.new_zeros(count).index_add(0, row_T, logps_T)
    if not collisions:
        return logps_R
    collisions_T = _token_log_collisions(head, hidden_TH, transform)
    return torch.stack([logps_R, logps_T.new_zeros(count).index_add(0, row_T, collisions_T)])


def forward_representations(model: PreTrainedModel, rows: PackedRows | ResponseRows, transform: LogitTransform) -> tuple[Tensor, Tensor]:
    """Σ_t log π, (R,), and the mean over response tokens of the last hidden state that predicts them, (R, H); at least float32."""
    hidden_TH, targets_T, row_T, count = _hidden(text_body(model), rows)
    logps_T = _token_logps(model.get_output_embeddings(), hidden_TH, targets_T, transform)
    wide_TH = hidden_TH.to(logps_T.dtype)
    sums_RH = wide_TH.new_zeros(count, wide_TH.shape[1]).index_add(0, row_T, wide_TH)
    tokens_R = row_T.bincount(minlength=count).clamp(min=1)
    return logps_T.new_zeros(count).index_add(0, row_T, logps_T), sums_RH / tokens_R[:, None]


def _hidden(body: PreTrainedModel, rows: PackedRows | ResponseRows) -> tuple[Tensor, Tensor, Tensor, int]:
    """Hidden states (T, H), targets and row numbers of all response tokens, and the number of rows."""
    if isinstance(rows, PackedRows):
        return packed_hidden(body, rows).index_select(0, rows.index_T), rows.targets_T, rows.row_T, rows.rows
    hidden, targets, row = [], [], []
    for where_R, part in rows.parts():
        hidden_RSH = body(input_ids=part.ids_RS, attention_mask=part.attention_RS, use_cache=False).last_hidden_state
        where_RS = part.targets_RS >= 0
        hidden.append(hidden_RSH[where_RS])
        targets.append(part.targets_RS[where_RS])
        row.append(where_R[where_RS.nonzero()[:, 0]])
    return torch.cat(hidden), torch.cat(targets), torch.cat(row), len(rows.ids_RS)


def _token_logps(head: nn.Module, hidden_TH: Tensor, targets_T: Tensor, transform: LogitTransform) -> Tensor:
    if type(head) is nn.Linear:
        return linear_logps(hidden_TH, head.weight, head.bias, targets_T, transform)
    # An adapted or otherwise wrapped head is called as a module: all logits of response positions, recomputed in the backward pass.
    logps_T: Tensor = checkpoint(_module_logps, head, hidden_TH, targets_T, transform, use_reentrant=False)
    return logps_T


@torch.no_grad()
def _token_log_collisions(head: nn.Module, hidden_TH: Tensor, transform: LogitTransform) -> Tensor:
    if type(head) is nn.Linear:
        return linear_log_collisions(hidden_TH, head.weight, head.bias, transform)
    logits_TV = _logits(head, hidden_TH, transform)
    return (2 * logits_TV).logsumexp(dim=1) - 2 * logits_TV.logsumexp(dim=1)


def _module_logps(head: nn.Module, hidden_TH: Tensor, targets_T: Tensor, transform: LogitTransform) -> Tensor:
    logits_TV = _logits(head, hidden_TH, transform)
    return logits_TV.gather(1, targets_T[:, None]).squeeze(1) - logits_TV.logsumexp(dim=1)


def _logits(head: nn.Module, hidden_TH: Tensor, transform: LogitTransform) -> Tensor:
    logits_TV: Tensor = head(hidden_TH)
    return transform(logits_TV if logits_TV.dtype == torch.float64 else logits_TV.float())
