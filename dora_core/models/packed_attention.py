"""Attention over packed records: causal within each prompt, each response attending to its prompt and itself.

Two implementations, chosen by device:

- CPU: PyTorch's SDPA, per record one causal call for the prompt and one for all its responses, whose keys are [prompt | own
  response] under one mask. Pairs of different records are never computed. (FlexAttention has no backward pass on CPU.)
- CUDA: one compiled FlexAttention call over the whole sequence; its block mask skips blocks in which no token attends to another.

Registered with transformers as attention implementation :data:`NAME`; without packed records it is plain ``sdpa``, so the model still
serves all other calls. Legend: S packed tokens, A attention heads, D head width, N responses, P prompt tokens, Y response tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dora_core.models.packing import PackedRows, Segment

NAME = "dora_packed"
FLEX_BLOCK = 128


class SegmentedAttention:
    """SDPA record by record."""

    def __init__(self, segments: tuple[Segment, ...], device: torch.device):
        self._segments = segments
        self._sizes = [n for s in segments for n in (s.prompt, sum(s.responses))]
        self._plans = [_ResponsePlan.of(s, device) for s in segments]

    def __call__(self, q_1ASD: Tensor, k_1ASD: Tensor, v_1ASD: Tensor, scale: float | None, dropout: float) -> Tensor:
        """(1, S, A, D). ``split_with_sizes`` and not slices: the backward pass of a slice writes zeros as long as the whole sequence."""
        attend = functools.partial(F.scaled_dot_product_attention, scale=scale, dropout_p=dropout)
        outputs = []
        parts = [x.split_with_sizes(self._sizes, dim=2) for x in (q_1ASD, k_1ASD, v_1ASD)]
        for i, plan in enumerate(self._plans):
            (q_p, k_p, v_p), (q_y, k_y, v_y) = ([x[2 * i + j] for x in parts] for j in range(2))
            if plan is None:  # one response: prompt and response are an ordinary causal sequence
                q, k, v = (torch.cat(pair, dim=2) for pair in ((q_p, q_y), (k_p, k_y), (v_p, v_y)))
                outputs.append(attend(q, k, v, is_causal=True))
                continue
            outputs.append(attend(q_p, k_p, v_p, is_causal=True))
            if not plan.shape[1]:  # responses of one token, which is predicted by the prompt alone
                continue
            q, k, v = (plan.unpack(x) for x in (q_y, k_y, v_y))
            k, v = (torch.cat([p.expand(len(own), -1, -1, -1), own], dim=2) for p, own in ((k_p, k), (v_p, v)))
            outputs.append(plan.repack(attend(q, k, v, attn_mask=plan.mask_YK)))
        return torch.cat(outputs, dim=2).transpose(1, 2)


@dataclass(frozen=True)
class _ResponsePlan:
    """How a record's responses, one after the other, become a batch (N, A, longest, D) and back.

    ``gather`` and ``scatter`` are indices into the two forms; None where all responses are equally long.
    """

    shape: tuple[int, int]
    gather: Tensor | None
    scatter: Tensor | None
    mask_YK: Tensor

    @classmethod
    def of(cls, segment: Segment, device: torch.device) -> _ResponsePlan | None:
        lengths, longest = segment.responses, max(segment.responses)
        if len(lengths) == 1:
            return None
        gather = scatter = None
        if min(lengths) < longest:
            offset_N = torch.tensor((0, *lengths)).cumsum(0)[:-1]
            own_NY = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
            # Padding repeats a real token: it comes after all real queries of its response, so none of them sees it.
            gather = torch.where(own_NY, offset_N[:, None] + torch.arange(longest), 0).flatten().to(device)
            scatter = own_NY.flatten().nonzero().squeeze(1).to(device)
        # Query y sees the whole prompt and its own response up to itself.
        mask_YK = torch.ones(longest, segment.prompt + longest, dtype=torch.bool).tril(segment.prompt).to(device)
        return cls((len(lengths), longest), gather, scatter, mask_YK)

    def unpack(self, x_1ASD: Tensor) -> Tensor:
        x_ASD = x_1ASD.squeeze(0) if self.gather is None else x_1ASD.squeeze(0).index_select(1, self.gather)
        return torch.unflatten(x_ASD, 1, self.shape).transpose(0, 1)

    def repack(self, x_NAYD: Tensor) -> Tensor:
        x_ASD = x_NAYD.transpose(0, 1).flatten(1, 2)
        return (x_ASD if self.scatter is None else x_ASD.index_select(1, self.scatter)).unsqueeze(0)


class FlexAttention:
    """One FlexAttention call; the sequence is padded to whole blocks, padding attends to itself."""

    def __init__(self, segments: tuple[Segment, ...], device: torch.device):
        from torch.nn.attention.flex_attention import BlockMask

        tokens = sum(len(s) for s in segments)
        self._padding = -tokens % FLEX_BLOCK
        record = [r for r, s in enumerate(segments) for _ in range(len(s))] + [len(segments)] * self._padding
        part = [p for s in segments for p, n in enumerate((s.prompt, *s.responses)) for _ in range(n)] + [0] * self._padding
        record_S, part_S = torch.tensor(record), torch.tensor(part)
        some_QK, all_QK = _visible_blocks(record_S, part_S)
        record_S, part_S = record_S.to(device), part_S.to(device)

        def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (record_S[q] == record_S[k]) & ((part_S[k] == 0) | (part_S[k] == part_S[q]))

        # Built from the segments: ``create_block_mask`` would evaluate all S × S pairs first.
        part_count, part_index, all_count, all_index = (x.to(device)[None, None] for x in (*_listed(some_QK & ~all_QK), *_listed(all_QK)))
        self.mask = BlockMask.from_kv_blocks(
            part_count, part_index, all_count, all_index, BLOCK_SIZE=FLEX_BLOCK, mask_mod=sees, seq_lengths=(len(record), len(record))
        )

    def __call__(self, q_1ASD: Tensor, k_1ASD: Tensor, v_1ASD: Tensor, scale: float | None, dropout: float) -> Tensor:
        """(1, S, A, D)."""
        assert dropout == 0.0, "FlexAttention has no dropout; models with it are not packed"
        q, k, v = (F.pad(x, (0, 0, 0, self._padding)) for x in (q_1ASD, k_1ASD, v_1ASD))
        out_1ASD: Tensor = _flex_attention(q.is_cuda)(q, k, v, block_mask=self.mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        return out_1ASD[:, :, : q_1ASD.shape[2]].transpose(1, 2)


def _visible_blocks(record_S: Tensor, part_S: Tensor) -> tuple[Tensor, Tensor]:
    """(query blocks, key blocks), bool: where some pair may be visible (never too few), and where all pairs surely are."""
    record_BT, part_BT = record_S.view(-1, FLEX_BLOCK), part_S.view(-1, FLEX_BLOCK)
    (r_low, r_high), (p_low, p_high) = ((x.amin(1), x.amax(1)) for x in (record_BT, part_BT))
    index = torch.arange(len(record_BT))
    earlier = index[:, None] >= index[None, :]
    meet = (r_high[None, :] >= r_low[:, None]) & (r_low[None, :] <= r_high[:, None])
    one_record = (r_low == r_high)[:, None] & (r_low == r_high)[None, :] & (r_low[:, None] == r_low[None, :])
    other_response = one_record & (p_low[None, :] > 0) & ((p_high[None, :] < p_low[:, None]) | (p_low[None, :] > p_high[:, None]))
    return earlier & meet & ~other_response, one_record & (p_high[None, :] == 0) & (index[:, None] > index[None, :])


def _listed(dense_QK: Tensor) -> tuple[Tensor, Tensor]:
    """Number of key blocks of each query block, and their indices first: the form that BlockMask takes."""
    return dense_QK.sum(1, dtype=torch.int32), dense_QK.int().argsort(dim=1, descending=True, stable=True).int()


@functools.cache
def _flex_attention(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention


def plan_attention(rows: PackedRows) -> SegmentedAttention | FlexAttention:
    """The attention of one packed batch, shared by all layers."""
    device = rows.ids_S.device
    return (FlexAttention if device.type == "cuda" else SegmentedAttention)(rows.segments, device)


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: SegmentedAttention | FlexAttention | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, A, S, D) in, (1, S, A, D) out."""
    if packed is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return plain
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and isinstance(packed, SegmentedAttention):
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return packed(query, key, value, scaling, dropout), None


AttentionInterface.register(NAME, packed_attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for calls without packed records


def packed_hidden(body: PreTrainedModel, rows: PackedRows) -> Tensor:
    """Last hidden states (S, H) of a packed batch; the model's attention implementation must be :data:`NAME`."""
    device = rows.ids_S.device
    hidden_1SH: Tensor = body(
        input_ids=rows.ids_S[None],
        position_ids=rows.positions_S[None],
        attention_mask=torch.empty(1, 1, 1, 1, device=device),  # four dimensions: taken as ready-made, no mask of S × S is built
        use_cache=False,
        packed=plan_attention(rows),
    ).last_hidden_state
    return hidden_1SH.squeeze(0)
