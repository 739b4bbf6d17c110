"""Attention over packed records: causal within each prompt, each response attending to its prompt and itself.

Two implementations, chosen by device:

- CPU: PyTorch's SDPA, per record one causal call for the prompt and one for all its responses, whose keys are [prompt | own
  response] under one mask. Pairs of different records are never computed. (FlexAttention has no backward pass on CPU.)
- CUDA: one compiled FlexAttention call over the whole sequence; its block mask skips blocks in which no token attends to another.

Registered with transformers as attention implementation :data:`NAME`; without packed records it is plain attention under the model's own
mask, so the model still serves all other calls. Both ways honour what a layer may ask for: sliding windows (Mistral, Gemma), a soft cap of
the scores (Gemma 2, arXiv 2408.00118) and sinks, one further score per head that takes probability and gives nothing (gpt-oss, arXiv
2309.17453). Any other argument of a layer is refused by :class:`NotPackable`: an argument that is discarded changes numbers silently.

Legend: S packed tokens, A attention heads, D head width, N responses, P prompt tokens, Y response tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dora_core.errors import ModelError
from dora_core.models.packing import PackedRows, Segment

NAME = "dora_packed"
FLEX_BLOCK = 128

WITHOUT_EFFECT = frozenset({"position_ids", "cache_position", "use_cache", "return_dict", "output_hidden_states", "output_router_logits"})
"""Arguments that layers pass on and attention does not read."""


class NotPackable(ModelError):
    """A layer asks its attention for something that packed records do not have."""


@dataclass(frozen=True)
class Scores:
    """How a layer's scores are made, beyond who attends to whom.

    Attributes:
        scale: factor of q·k; None is 1/√D.
        dropout: share of the probabilities that is dropped.
        window: a token attends to itself and the ``window`` − 1 tokens before it; None is no limit.
        softcap: c of c·tanh(score/c).
        sinks_A: one more score per head, whose probability is dropped.
    """

    scale: float | None = None
    dropout: float = 0.0
    window: int | None = None
    softcap: float | None = None
    sinks_A: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether PyTorch's SDPA computes them."""
        return self.softcap is None and self.sinks_A is None


def attend(q: Tensor, k: Tensor, v: Tensor, mask_QK: Tensor | None, scores: Scores) -> Tensor:
    """(…, A, Q, D) → the same. ``mask_QK``: true where q attends to k, broadcast over the batch; None is causal. The window is in it."""
    if scores.plain:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask_QK, is_causal=mask_QK is None, scale=scores.scale, dropout_p=scores.dropout
        )
    if mask_QK is None:
        mask_QK = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    wide = torch.promote_types(q.dtype, torch.float32)
    score = ((q @ k.mT) * (q.shape[-1] ** -0.5 if scores.scale is None else scores.scale)).to(wide)
    if scores.softcap is not None:
        score = torch.tanh(score / scores.softcap) * scores.softcap
    # Not −∞: a row in which nothing is visible, as of left padding, would be NaN.
    score = score.masked_fill(~mask_QK, torch.finfo(wide).min)
    if scores.sinks_A is not None:
        sink = scores.sinks_A.to(wide).view(-1, 1, 1).expand(*score.shape[:-1], 1)
        score = torch.cat([score, sink], dim=-1)
    chances = F.dropout(score.softmax(-1), scores.dropout)[..., : k.shape[-2]]
    return chances.to(v.dtype) @ v


def _band(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Causal mask of the last ``queries`` of ``keys`` positions, within the window."""
    mask_QK = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask_QK if window is None else mask_QK.triu(keys - queries - window + 1)


class SegmentedAttention:
    """SDPA record by record."""

    def __init__(self, segments: tuple[Segment, ...], device: torch.device):
        self._segments = segments
        self._sizes = [n for s in segments for n in (s.prompt, sum(s.responses))]
        self._plans = [_ResponsePlan.of(s, device) for s in segments]
        self._band = functools.cache(functools.partial(_band, device=device))  # shared by all layers

    def __call__(self, q_1ASD: Tensor, k_1ASD: Tensor, v_1ASD: Tensor, scores: Scores) -> Tensor:
        """(1, S, A, D). ``split_with_sizes`` and not slices: the backward pass of a slice writes zeros as long as the whole sequence."""
        groups = q_1ASD.shape[1] // k_1ASD.shape[1]
        if groups > 1:
            k_1ASD, v_1ASD = k_1ASD.repeat_interleave(groups, dim=1), v_1ASD.repeat_interleave(groups, dim=1)
        outputs = []
        parts = [x.split_with_sizes(self._sizes, dim=2) for x in (q_1ASD, k_1ASD, v_1ASD)]
        for i, plan in enumerate(self._plans):
            (q_p, k_p, v_p), (q_y, k_y, v_y) = ([x[2 * i + j] for x in parts] for j in range(2))
            if plan is None:  # one response: prompt and response are an ordinary causal sequence
                q, k, v = (torch.cat(pair, dim=2) for pair in ((q_p, q_y), (k_p, k_y), (v_p, v_y)))
                outputs.append(attend(q, k, v, self._causal(q.shape[2], scores.window), scores))
                continue
            outputs.append(attend(q_p, k_p, v_p, self._causal(q_p.shape[2], scores.window), scores))
            longest = plan.shape[1]
            if not longest:  # responses of one token, which is predicted by the prompt alone
                continue
            q, k, v = (plan.unpack(x) for x in (q_y, k_y, v_y))
            k, v = (torch.cat([p.expand(len(own), -1, -1, -1), own], dim=2) for p, own in ((k_p, k), (v_p, v)))
            # Query y sees the whole prompt and its own response up to itself, as far as the window reaches.
            mask_YK = self._band(longest, k.shape[2], scores.window)
            outputs.append(plan.repack(attend(q, k, v, mask_YK, scores)))
        return torch.cat(outputs, dim=2).transpose(1, 2)

    def _causal(self, tokens: int, window: int | None) -> Tensor | None:
        return None if window is None or tokens <= window else self._band(tokens, tokens, window)


@dataclass(frozen=True)
class _ResponsePlan:
    """How a record's responses, one after the other, become a batch (N, A, longest, D) and back.

    ``gather`` and ``scatter`` are indices into the two forms; None where all responses are equally long.
    """

    shape: tuple[int, int]
    gather: Tensor | None
    scatter: Tensor | None

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
        return cls((len(lengths), longest), gather, scatter)

    def unpack(self, x_1ASD: Tensor) -> Tensor:
        x_ASD = x_1ASD.squeeze(0) if self.gather is None else x_1ASD.squeeze(0).index_select(1, self.gather)
        return torch.unflatten(x_ASD, 1, self.shape).transpose(0, 1)

    def repack(self, x_NAYD: Tensor) -> Tensor:
        x_ASD = x_NAYD.transpose(0, 1).flatten(1, 2)
        return (x_ASD if self.scatter is None else x_ASD.index_select(1, self.scatter)).unsqueeze(0)


class FlexAttention:
    """One FlexAttention call; the sequence is padded to whole blocks, padding attends to itself."""

    def __init__(self, segments: tuple[Segment, ...], device: torch.device):
        tokens = sum(len(s) for s in segments)
        self._device, self._padding = device, -tokens % FLEX_BLOCK
        record = [r for r, s in enumerate(segments) for _ in range(len(s))] + [len(segments)] * self._padding
        part = [p for s in segments for p, n in enumerate((s.prompt, *s.responses)) for _ in range(n)] + [0] * self._padding
        # A response's positions go on where its prompt ends; a window is a distance between positions.
        starts = [(0 if p == 0 else s.prompt, n) for s in segments for p, n in enumerate((s.prompt, *s.responses))]
        position = [start + i for start, n in starts for i in range(n)] + list(range(self._padding))
        self._record_S, self._part_S, self._position_S = torch.tensor(record), torch.tensor(part), torch.tensor(position)
        self.mask = functools.cache(self._mask)  # by window, shared by all layers

    def _mask(self, window: int | None) -> Any:
        from torch.nn.attention.flex_attention import BlockMask

        some_QK, all_QK = _visible_blocks(self._record_S, self._part_S, self._position_S, window)
        record_S, part_S, position_S = (x.to(self._device) for x in (self._record_S, self._part_S, self._position_S))

        def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (record_S[q] == record_S[k]) & ((part_S[k] == 0) | (part_S[k] == part_S[q]))

        reach = len(record_S) if window is None else window

        def sees_near(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return sees(batch, head, q, k) & (position_S[q] - position_S[k] < reach)

        # Built from the segments: ``create_block_mask`` would evaluate all S × S pairs first.
        listed = (x.to(self._device)[None, None] for x in (*_listed(some_QK & ~all_QK), *_listed(all_QK)))
        part_count, part_index, all_count, all_index = listed
        return BlockMask.from_kv_blocks(
            part_count,
            part_index,
            all_count,
            all_index,
            BLOCK_SIZE=FLEX_BLOCK,
            mask_mod=sees if window is None else sees_near,
            seq_lengths=(len(record_S), len(record_S)),
        )

    def __call__(self, q_1ASD: Tensor, k_1ASD: Tensor, v_1ASD: Tensor, scores: Scores) -> Tensor:
        """(1, S, A, D)."""
        from torch.nn.attention.flex_attention import AuxRequest

        assert scores.dropout == 0.0, "FlexAttention has no dropout; models with it are not packed"
        tokens = q_1ASD.shape[2]
        q, k, v = (F.pad(x, (0, 0, 0, self._padding)) for x in (q_1ASD, k_1ASD, v_1ASD))
        call = functools.partial(
            _flex_attention(q.is_cuda),
            score_mod=None if scores.softcap is None else _soft_cap(scores.softcap),
            block_mask=self.mask(scores.window),
            scale=scores.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        if scores.sinks_A is None:
            out_1ASD: Tensor = call(q, k, v)
        else:
            out_1ASD, aux = call(q, k, v, return_aux=AuxRequest(lse=True))
            # Σ exp(score) of all that is seen becomes Σ exp(score) + exp(sink): the outputs shrink by their quotient.
            share_1AS = torch.sigmoid(aux.lse - scores.sinks_A.to(aux.lse.dtype)[None, :, None])
            out_1ASD = (out_1ASD * share_1AS[..., None]).to(q.dtype)
        return out_1ASD[:, :, :tokens].transpose(1, 2)


def _visible_blocks(record_S: Tensor, part_S: Tensor, position_S: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """(query blocks, key blocks), bool: where some pair may be visible (never too few), and where all pairs surely are."""
    low_high = [(x.view(-1, FLEX_BLOCK).amin(1), x.view(-1, FLEX_BLOCK).amax(1)) for x in (record_S, part_S, position_S)]
    (r_low, r_high), (p_low, p_high), (at_low, at_high) = low_high
    index = torch.arange(len(r_low))
    earlier = index[:, None] >= index[None, :]
    meet = (r_high[None, :] >= r_low[:, None]) & (r_low[None, :] <= r_high[:, None])
    one_record = (r_low == r_high)[:, None] & (r_low == r_high)[None, :] & (r_low[:, None] == r_low[None, :])
    other_response = one_record & (p_low[None, :] > 0) & ((p_high[None, :] < p_low[:, None]) | (p_low[None, :] > p_high[:, None]))
    some = earlier & meet & ~other_response
    every = one_record & (p_high[None, :] == 0) & (index[:, None] > index[None, :])
    if window is not None:
        some &= at_low[:, None] - at_high[None, :] < window
        every &= at_high[:, None] - at_low[None, :] < window
    return some, every


def _listed(dense_QK: Tensor) -> tuple[Tensor, Tensor]:
    """Number of key blocks of each query block, and their indices first: the form that BlockMask takes."""
    return dense_QK.sum(1, dtype=torch.int32), dense_QK.int().argsort(dim=1, descending=True, stable=True).int()


@functools.cache
def _flex_attention(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention


@functools.cache  # one function per cap: another function would be compiled again
def _soft_cap(cap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


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
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, A, S, D) in, (1, S, A, D) out.

    Raises:
        NotPackable: the layer has an argument that this attention does not honour, or a mask of its own.
    """
    scores = Scores(scaling, dropout, sliding_window, softcap, s_aux)
    if packed is not None:
        _refuse_others(module, attention_mask, others)
        return packed(query, key, value, scores), None
    if scores.plain:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, sliding_window=sliding_window, **others
        )
        return plain
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if attention_mask is None and query.shape[2] == 1:  # one new token, which sees all that are cached
        attention_mask = torch.ones(1, key.shape[2], dtype=torch.bool, device=query.device)
    return attend(query, key, value, attention_mask, scores).transpose(1, 2), None


def _refuse_others(module: nn.Module, attention_mask: Tensor | None, others: dict[str, Any]) -> None:
    name = type(module).__name__
    causal = others.pop("is_causal", None)
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise NotPackable(f"{name} attends to later tokens", hint="it is computed row by row")
    unknown = sorted(key for key, value in others.items() if key not in WITHOUT_EFFECT and value is not None and value is not False)
    if unknown:
        raise NotPackable(f"{name} gives its attention {', '.join(unknown)}", hint="it is computed row by row")
    if attention_mask is not None and attention_mask.numel() > 1:
        raise NotPackable(f"{name} makes an attention mask of its own", hint="it is computed row by row")


AttentionInterface.register(NAME, packed_attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for calls without packed records


def packed_hidden(body: PreTrainedModel, rows: PackedRows) -> Tensor:
    """Last hidden states (S, H) of a packed batch; the model's attention implementation must be :data:`NAME`."""
    device = rows.ids_S.device
    hidden_1SH: Tensor = body(
        input_ids=rows.ids_S[None],
        position_ids=rows.positions_S[None],
        attention_mask=torch.zeros(1, 1, 1, 1, device=device),  # four dimensions: taken as ready-made, no mask of S × S is built
        use_cache=False,
        packed=plan_attention(rows),
    ).last_hidden_state
    return hidden_1SH.squeeze(0)
