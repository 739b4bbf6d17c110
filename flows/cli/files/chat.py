"""A conversation with a model folder on this machine, with the encoder and the sampler of the pipeline: what is seen here is what runs
sample, judge and compare."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dora_core.config.method import GenerateConfig
    from dora_core.data.encoding import Encoder
    from dora_core.data.records import Message

CONTEXT = 4096
"""Tokens of the conversation that the model sees, where its own window is not shorter."""


@dataclass
class Chat:
    """A conversation. ``messages`` grow by a question and an answer per turn."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    generate: GenerateConfig
    messages: list[Message] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path, *, system: str | None, max_new_tokens: int, temperature: float, seed: int) -> Chat:
        """Load a model folder.

        Raises:
            ModelError: it cannot be loaded.
        """
        import torch
        from transformers.utils import logging

        from dora_core.config.method import GenerateConfig, TextConfig
        from dora_core.data.encoding import Encoder
        from dora_core.models.loading import load_policy

        logging.disable_progress_bar()  # a bar per tensor, in the middle of a conversation
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, tokenizer = load_policy(folder, torch.bfloat16 if device.type == "cuda" else torch.float32)
        window = getattr(model.config.get_text_config(), "max_position_embeddings", None) or CONTEXT
        text = TextConfig(max_prompt_tokens=max(8, min(CONTEXT, window) - max_new_tokens), max_response_tokens=max(4, max_new_tokens))
        settings = GenerateConfig(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        return cls(model.eval().to(device), tokenizer, Encoder(tokenizer, text), settings, messages)

    def say(self, message: str) -> str:
        """Add a message and return the answer to it."""
        from dora_core.models.generation import sample

        self.messages.append({"role": "user", "content": message})
        prompt = self.encoder.prompt(self.messages)[0]
        ends, pad = self.encoder.ends(self.model.generation_config), self.tokenizer.pad_token_id
        [[answer]] = sample(self.model, [prompt], [len(self.messages)], self.generate, eos_id=ends, pad_id=pad, batch_tokens=CONTEXT)
        text = self.encoder.decode([answer.ids], ends)[0].strip()
        self.messages.append({"role": "assistant", "content": text})
        return text
