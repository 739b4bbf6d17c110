"""A conversation: the model sees the turns before, and the answer comes from the pipeline's own sampler."""

from __future__ import annotations

from pathlib import Path

import torch

from dora_core.config.method import ModelConfig
from dora_core.models.loading import build_policy, save_model, train_tokenizer
from flows.cli.files.chat import Chat


def test_an_answer_depends_on_the_turns_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["the cat sat on a mat and saw one dog"], 300)
    model = build_policy(ModelConfig(hidden_size=32, layers=2, heads=2), tokenizer, 128)
    for parameter in model.parameters():
        parameter.data.mul_(3.0)  # far from uniform, so that contexts differ
    save_model(model, tokenizer, tmp_path)

    def answers(*messages: str) -> list[str]:
        chat = Chat.load(tmp_path, system=None, max_new_tokens=8, temperature=0.0, seed=0)
        return [chat.say(message) for message in messages]

    assert answers("the dog") == answers("the dog")
    assert answers("the cat", "the dog")[1] != answers("saw one", "the dog")[1]
