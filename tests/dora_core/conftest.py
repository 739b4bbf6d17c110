"""Tiny real models for the unit tests of ``dora_core``."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dora_core.config.method import ModelConfig
from dora_core.models.loading import build_policy, train_tokenizer

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "very", "old", "dog", "run", "home"]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer([" ".join(WORDS)] * 3, 300)


@pytest.fixture
def policy(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    torch.manual_seed(0)
    return build_policy(ModelConfig(hidden_size=32, layers=2, heads=2), tokenizer, 64)
