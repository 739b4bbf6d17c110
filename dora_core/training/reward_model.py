"""Reward models learned from preferences: the Bradley-Terry loss as a training task, and scoring.

A record's loss is the mean of −log σ(r_w − r_l) over its strict pairs (Bradley & Terry 1952; Ouyang et al. 2022, eq. 1), and a step's
the mean over its records, over all ranks and micro-batches: a long list does not outweigh a short one, and a response that
takes part in several pairs is computed once. Rewards are known up to a constant per prompt, so only those of one prompt compare.

Left out: sharing a prompt's computation among its responses (encoders are bidirectional, and sequence classifiers read one position per
row); and models that were trained on a pair encoding of their own ([SEP] between prompt and response): rows are those of
``data.encoding.Encoder``.

Shape legend: R rows (one per response), P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from dora_core.data.encoding import EncodedResponse, Encoder
from dora_core.data.records import Message
from dora_core.errors import ModelError
from dora_core.evaluation.metrics import preference_pairs
from dora_core.models.batching import TokenBudget, in_batches
from dora_core.models.response_rows import ResponseRows, collate
from dora_core.training.distributed import Worker, gradient_sync


@dataclass(frozen=True)
class RewardRecord:
    """One record: the responses that take part in a pair, and its pairs as positions among them."""

    responses: list[EncodedResponse]
    winner_P: NDArray[np.int64]
    loser_P: NDArray[np.int64]


def preference_records(
    prompts: Sequence[Sequence[Message]], responses: Sequence[Sequence[str]], rewards: Sequence[Sequence[float | None]], encoder: Encoder
) -> list[RewardRecord]:
    """Records with at least one strict pair, encoded. Unmeasured rewards (None) and ties make no pair, and neither do different responses
    that are the same tokens after the cut."""
    found = [preference_pairs([of_record]) for of_record in rewards]
    kept = [i for i, pairs in enumerate(found) if len(pairs.winner_P)]
    used = [np.unique([found[i].winner_P, found[i].loser_P]) for i in kept]
    texts = [[responses[i][k] for k in taking_part] for i, taking_part in zip(kept, used, strict=True)]
    encoded = encoder.encode_lists([prompts[i] for i in kept], texts)
    records = [
        RewardRecord(rows, np.searchsorted(taking_part, found[i].winner_P), np.searchsorted(taking_part, found[i].loser_P))
        for i, taking_part, rows in zip(kept, used, encoded, strict=True)
    ]
    distinct = [_distinct(record, of_record) for record, of_record in zip(records, texts, strict=True)]
    return [record for record in distinct if len(record.winner_P)]


def _distinct(record: RewardRecord, texts: Sequence[str]) -> RewardRecord:
    """The record without pairs of different texts with the same tokens."""
    ids = [response.response_ids for response in record.responses]
    pairs = zip(record.winner_P, record.loser_P, strict=True)
    kept = np.array([ids[w] != ids[y] or texts[w] == texts[y] for w, y in pairs], dtype=bool)
    return record if kept.all() else RewardRecord(record.responses, record.winner_P[kept], record.loser_P[kept])


class RewardModel(nn.Module):
    """Wraps a sequence classifier with one output so that ``forward`` gives r per row. Wrap *this* in DDP or FSDP: they hook ``forward``.

    The model itself knows which position to read: [CLS] of an encoder, the last token that is not padding of a decoder. The latter
    needs padding on the right with the ``pad_token_id`` of its configuration, which ``load_reward_model`` sets.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self._window = getattr(model.config.get_text_config(), "max_position_embeddings", None) or float("inf")

    def collate(self, responses: Sequence[EncodedResponse], pad_id: int) -> ResponseRows:
        """Right-padded rows.

        Raises:
            ModelError: a response and its prompt are longer than the model has positions.
        """
        longest = max(map(len, responses))
        if longest > self._window:
            raise ModelError(
                f"{longest} tokens of prompt and response do not fit into the {self._window} positions of {type(self.model).__name__}",
                hint="lower text.max_prompt_tokens and text.max_response_tokens so that their sum fits, or use a model with more positions",
            )
        return collate(responses, pad_id)

    def forward(self, rows: ResponseRows) -> Tensor:
        """r(x, y) in nats of log-odds, shape (R,), at least float32."""
        rewards_R: Tensor = self.model(input_ids=rows.ids_RS, attention_mask=rows.attention_RS).logits.squeeze(1)
        return rewards_R if rewards_R.dtype == torch.float64 else rewards_R.float()


class RewardTask:
    """A :class:`dora_core.training.loop.Task` on records with preferences."""

    exact = True

    def __init__(self, model: RewardModel, layers: list[nn.Module], records: Sequence[RewardRecord], worker: Worker, pad_id: int):
        self.module, self.layers, self._records, self._worker, self._pad_id = model, layers, records, worker, pad_id
        self.tokens = [sum(map(len, record.responses)) for record in records]

    def backward(self, module: nn.Module, micro_batches: list[list[int]], step: int) -> tuple[float, dict[str, float]]:
        totals = torch.zeros(5, dtype=torch.float64, device=self._worker.device)  # records, Σ loss, Σ accuracy, Σ margin, tokens
        for number, indices in enumerate(micro_batches):
            records = [self._records[i] for i in indices or [0]]
            with gradient_sync(module, number == len(micro_batches) - 1):
                rows = self.module.collate([row for record in records for row in record.responses], self._pad_id)
                margin_P, share_P = _margins(module(rows.to(self._worker.device)), records)
                share_P = share_P * bool(indices)
                loss = -(share_P * logsigmoid(margin_P)).sum()
                loss.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                right_P = (margin_P > 0).double() + (margin_P == 0).double() / 2
                sums = (share_P.sum(), loss, (share_P * right_P).sum(), (share_P * margin_P).sum())
                totals += torch.stack([*sums, totals.new_tensor(sum(self.tokens[i] for i in indices))])
        count, *over_records, tokens = self._worker.sum(totals).tolist()
        means = dict(zip(("loss", "accuracy", "margin"), (s / max(count, 1.0) for s in over_records), strict=True))
        # Backward saw Σ loss of this rank, DDP and FSDP averaged it over ranks: this factor makes it the mean per record.
        return self._worker.world_size / max(count, 1.0), means | {"tokens": tokens}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...


def _margins(rewards_R: Tensor, records: Sequence[RewardRecord]) -> tuple[Tensor, Tensor]:
    """r_w − r_l of every pair, and its share of its record: 1/(pairs of the record). Both shape (P,), float64."""
    first = np.cumsum([0, *(len(record.responses) for record in records)])
    pairs = [len(record.winner_P) for record in records]
    at = np.repeat(first[:-1], pairs)
    winner_P, loser_P = (at + np.concatenate([getattr(record, name) for record in records]) for name in ("winner_P", "loser_P"))
    rewards_R = rewards_R.double()
    margin_P = rewards_R[torch.from_numpy(winner_P)] - rewards_R[torch.from_numpy(loser_P)]
    return margin_P, margin_P.new_tensor(np.repeat(1.0 / np.array(pairs), pairs))


@torch.no_grad()
def score(
    model: RewardModel, responses: Sequence[EncodedResponse], pad_id: int, budget: int | TokenBudget, device: torch.device
) -> list[float]:
    """Inference: r of each response, in the given order, in length-sorted batches of at most ``budget`` padded tokens."""
    rewards = [0.0] * len(responses)

    def reward(batch: NDArray[np.int64]) -> list[float]:
        found: list[float] = model(model.collate([responses[i] for i in batch], pad_id).to(device)).tolist()
        return found

    for batch, found in in_batches(reward, [len(response) for response in responses], TokenBudget.of(budget)):
        for place, value in zip(batch, found, strict=True):
            rewards[place] = value
    return rewards
