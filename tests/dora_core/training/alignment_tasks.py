"""Records with and without a preference, and the alignment task on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dora_core.config.alignment import AlignConfig
from dora_core.config.execution import Execution
from dora_core.config.method import TextConfig
from dora_core.data.encoding import Encoder
from dora_core.models.logprobs import ResponseLogps, score_responses
from dora_core.training.alignment import AlignmentTask
from dora_core.training.alignment_data import AlignmentData
from dora_core.training.distributed import Worker
from tests.dora_core.training_records import alignment_data

RECORDS = [
    {"record_id": "a", "prompt": "cat", "responses": ["sat", "ran far", "on"], "rewards": [1.0, None, 0.0]},
    {"record_id": "b", "prompt": "dog", "responses": ["home", "mat"], "rewards": [0.0, 2.0]},
    {"record_id": "tie", "prompt": "dog", "responses": ["home", "run"], "rewards": [1.0, 1.0]},
    {"record_id": "null", "prompt": "old", "responses": ["home", "one"], "rewards": [None, 1.0]},
    {"record_id": "c", "prompt": "one", "responses": ["very", "old", "dog"], "rewards": [3.0, 2.0, 1.0]},
]

UNPAIRED = [
    {"record_id": "u", "prompt": "cat", "responses": ["ran far"], "rewards": [1.0], "reward_kind": "label"},
    {"record_id": "v", "prompt": "old", "responses": ["very mat"], "rewards": [0.0], "reward_kind": "label"},
]


def make_data(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, shift: float = 0.0, records: list[dict[str, Any]] | None = None
) -> AlignmentData:
    """Reference log-probabilities are those of ``policy`` itself, plus ``shift``."""
    rows = [
        r | {"prompt": [{"role": "user", "content": r["prompt"]}], "sources": ["human", None, "a-lm"][: len(r["responses"])]}
        for r in records or RECORDS
    ]
    encoder = Encoder(tokenizer, TextConfig())
    encoded = [encoder.encode(r["prompt"], y) for r in rows for y in r["responses"]]
    logps = score_responses(ResponseLogps(policy), encoded, tokenizer.pad_token_id, 4096, torch.device("cpu"))
    return alignment_data(rows, np.linspace(0.5, 2.0, len(rows)), [x + shift for x in logps], encoder)


def make_task(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AlignmentData,
    worker: Worker | None = None,
    execution: Execution | None = None,
    loss: str | dict[str, Any] = "dpo_pl",
    **settings: Any,
) -> AlignmentTask:
    config = AlignConfig(**{"loss": loss, "objective": {"name": "dora"}} | settings)
    layers = list(policy.model.layers)
    return AlignmentTask(ResponseLogps(policy), layers, data, config, execution or Execution(), worker or Worker(), tokenizer.pad_token_id)
