"""Tiny random models of several architectures, saved in several files with an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

WIDTHS: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def configuration(name: str) -> Any:
    """101 tokens and 3 layers: neither divides by 2 or 4 ranks."""
    if name == "llama":
        return transformers.LlamaConfig(**WIDTHS, tie_word_embeddings=False)
    if name == "tied":
        return transformers.LlamaConfig(**WIDTHS, tie_word_embeddings=True)
    if name == "gpt2":  # Conv1D, learned positions, a tied head
        return transformers.GPT2Config(vocab_size=101, n_embd=32, n_layer=3, n_head=4, n_positions=64, pad_token_id=0)
    if name == "mixtral":  # experts are merged when they are read
        return transformers.MixtralConfig(**WIDTHS, num_local_experts=4, tie_word_embeddings=False)
    assert name == "neox", name  # names change when they are read
    return transformers.GPTNeoXConfig(**{k: v for k, v in WIDTHS.items() if k != "num_key_value_heads"})


NAMES = ("llama", "tied", "gpt2", "mixtral", "neox")


def saved(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The model in ``folder``, in files of at most 30 kB."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configuration(name)).to(dtype)
    model.save_pretrained(folder, max_shard_size="30KB")
    return folder
