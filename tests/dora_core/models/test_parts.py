"""The text part of a model, and its shared weights."""

from __future__ import annotations

from dora_core.models.parts import text_body, tied_modules
from tests.dora_core.models.architectures import build


def test_the_body_of_a_plain_model_is_its_base() -> None:
    model = build("llama")
    assert text_body(model) is model.model and tied_modules(model) == []


def test_the_body_of_a_multimodal_model_is_its_text_decoder() -> None:
    model = build("gemma3, multimodal")
    assert text_body(model) is model.model.language_model
    assert tied_modules(model) == ["model.language_model.embed_tokens", "lm_head"]
