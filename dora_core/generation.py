"""Sampling responses: many at once, and each a function of (seed, prompt, sample number) alone.

Every response has its own counter-based stream of uniform numbers (Philox: Salmon et al. 2011), one number per token, turned into a
token by inverting the cumulative distribution in float64. So it does not matter which responses share a batch, how many were drawn
before, or on how many workers: the texts are the same. What remains is rounding: a batch of another shape may change a logit in
its last digits, and with it the rare token (about one in a million in float32) whose number lies on the edge between two.

What makes it quick: a prompt is read once for all its samples; the cache appends in place (transformers' own copies itself for every
token); responses that have ended leave the batch, so a straggler decodes in a batch of one, not of hundreds.

Legend: P prompts of a batch, R = P · samples rows (one response each), A rows still in the batch, L longest prompt, T most new
tokens, V vocabulary.

Left out: filling free places with waiting prompts (continuous batching), and models with a recurrent state.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from dora_core.batching import token_batches
from dora_core.config import GenerateConfig

CACHE_ROOM = 64
"""Tokens of spare room when a cache buffer is allocated: one copy of the cache per 64 tokens."""
FULL_ENOUGH = 0.8
"""Ended responses leave the batch when fewer than this share of its rows is still going: leaving costs a copy of the cache."""


@dataclass(frozen=True)
class Sample:
    """Generated token ids, the end-of-sequence token included; ``finished`` is False where ``max_new_tokens`` cut them off."""

    ids: list[int]
    finished: bool


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[int],
    config: GenerateConfig,
    *,
    eos_id: int,
    pad_id: int,
    batch_tokens: int,
) -> list[list[Sample]]:
    """``config.samples`` responses to each prompt.

    Args:
        model: any Hugging Face causal language model, in evaluation mode.
        prompts: token ids of each prompt, at least one.
        keys: identity of each prompt (a record's ``prompt_hash``); equal keys and equal prompts give equal responses.
        batch_tokens: most tokens in the cache at once, counting every response at full length. The samples of one prompt always
            share a batch, so it may be exceeded when ``samples`` is large.

    Returns:
        In the order of ``prompts``, by sample number.
    """
    responses: list[list[Sample]] = [[] for _ in prompts]
    reserved = [config.samples * (len(p) + config.max_new_tokens) for p in prompts]
    for batch in token_batches(reserved, batch_tokens):
        uniforms = [uniform_numbers(config.seed, keys[i], s, config.max_new_tokens) for i in batch for s in range(config.samples)]
        decoded = _decode(model, [prompts[i] for i in batch], np.stack(uniforms), config, eos_id, pad_id)
        for place, index in enumerate(batch):
            responses[index] = decoded[place * config.samples : (place + 1) * config.samples]
    return responses


def uniform_numbers(seed: int, key: int, sample: int, count: int) -> np.ndarray:
    """The stream of one response: float64 in [0, 1), shape (count,); a longer stream begins with the shorter one."""
    digest = hashlib.blake2b(f"{seed}/{key}/{sample}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big"))).random(count)


def choose(logits_RV: Tensor, uniform_R: Tensor, temperature: float, top_p: float) -> Tensor:
    """One token per row, shape (R,): the first whose cumulative probability exceeds the row's uniform number.

    Temperature 0 is the most likely token. ``top_p`` < 1 keeps the smallest set of most likely tokens with at least that much
    probability (nucleus sampling, Holtzman et al. 2020) and rescales it.
    """
    if temperature == 0:
        return logits_RV.argmax(dim=1)
    p_RV = (logits_RV.double() / temperature).softmax(dim=1)
    if top_p < 1:
        ranked_RV, token_RV = p_RV.sort(dim=1, descending=True, stable=True)
        before_RV = ranked_RV.cumsum(dim=1) - ranked_RV
        p_RV = p_RV.masked_fill(torch.empty_like(token_RV, dtype=torch.bool).scatter_(1, token_RV, before_RV >= top_p), 0.0)
    cdf_RV = p_RV.cumsum(dim=1)
    return torch.searchsorted(cdf_RV, uniform_R[:, None] * cdf_RV[:, -1:], right=True).squeeze(1)


def _decode(
    model: PreTrainedModel, prompts: list[Sequence[int]], uniform_RT: np.ndarray, config: GenerateConfig, eos_id: int, pad_id: int
) -> list[Sample]:
    """One batch, from prefill to the last token; rows in the order of ``uniform_RT``."""
    forward, device = _Forward(model), model.device
    longest, most = max(map(len, prompts)), config.max_new_tokens
    ids_PL = torch.tensor([[pad_id] * (longest - len(p)) + list(p) for p in prompts], device=device)
    attention_PL = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    logits_PV = forward(ids_PL, attention_PL, (attention_PL.cumsum(dim=1) - 1).clamp(min=0))

    forward.cache.batch_repeat_interleave(config.samples)
    logits_AV = logits_PV.repeat_interleave(config.samples, dim=0)
    attention_PS = torch.cat([attention_PL, attention_PL.new_ones(len(prompts), most)], dim=1)
    attention_AS = attention_PS.repeat_interleave(config.samples, dim=0)
    position_A = attention_PL.sum(dim=1).repeat_interleave(config.samples)
    uniform_AT = torch.from_numpy(uniform_RT).to(device)
    tokens_RT = torch.full(uniform_RT.shape, eos_id, device=device)
    row_A = torch.arange(len(tokens_RT), device=device)
    going_A = torch.ones_like(row_A, dtype=torch.bool)
    for step in range(most):
        token_A = choose(logits_AV, uniform_AT[:, step], config.temperature, config.top_p)
        tokens_RT[row_A, step] = token_A  # a row that has ended and not left yet writes behind its end
        going_A = going_A & (token_A != eos_id)
        going = int(going_A.sum())
        if going == 0 or step + 1 == most:
            break
        if going < FULL_ENOUGH * len(row_A):
            stay = going_A.nonzero().squeeze(1)
            forward.cache.batch_select_indices(stay)
            token_A, row_A, going_A, position_A = token_A[stay], row_A[stay], going_A[stay], position_A[stay]
            attention_AS, uniform_AT = attention_AS[stay], uniform_AT[stay]
        logits_AV = forward(token_A[:, None], attention_AS[:, : longest + step + 1], (position_A + step)[:, None])
    return [_until_end(row, eos_id) for row in tokens_RT.tolist()]


def _until_end(tokens: list[int], eos_id: int) -> Sample:
    return Sample(tokens[: tokens.index(eos_id) + 1], True) if eos_id in tokens else Sample(tokens, False)


class _Forward:
    """The model with its cache: ids, attention mask over everything so far and positions → logits (rows, V) of the last position."""

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self.cache = DynamicCache(config=model.config)
        self.cache.layers = [_AppendingLayer() if type(layer) is DynamicLayer else layer for layer in self.cache.layers]
        self._accepted = inspect.signature(model.forward).parameters

    def __call__(self, ids: Tensor, attention: Tensor, positions: Tensor) -> Tensor:
        options: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}  # not every architecture has both
        options = {name: value for name, value in options.items() if name in self._accepted}
        return self._model(input_ids=ids, attention_mask=attention, past_key_values=self.cache, use_cache=True, **options).logits[:, -1]


class _AppendingLayer(DynamicLayer):
    """Keys and values as views of buffers with room behind them, so that a new token is written and nothing copied."""

    _room = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old = self.get_seq_length()
        new = old + key_states.shape[-2]
        if new > self._room:
            self._room = new + CACHE_ROOM
            self._buffers = [_roomy(key_states, self.keys, old, self._room), _roomy(value_states, self.values, old, self._room)]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., old:new, :] = states
        self.keys, self.values = (buffer[..., :new, :] for buffer in self._buffers)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._room = 0  # keys and values are copies now, without room

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._room = 0


def _roomy(like: Tensor, held: Tensor, length: int, room: int) -> Tensor:
    """A buffer for ``room`` tokens with the ``length`` held ones in front."""
    buffer = like.new_empty(*like.shape[:-2], room, like.shape[-1])
    if length:
        buffer[..., :length, :] = held
    return buffer
