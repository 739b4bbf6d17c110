"""Describing files of a model are read without its weights."""

from __future__ import annotations

import json

import pytest
import torch

from dora_core.config.method import ModelConfig
from dora_core.errors import ModelError
from dora_core.models.loading import build_policy, save_model
from dora_core.models.model_files import ModelFiles

SMALL = ModelConfig(hidden_size=32, layers=1, heads=2)


@pytest.fixture
def folder(tmp_path, tokenizer):
    torch.manual_seed(0)
    save_model(build_policy(SMALL, tokenizer, 64), tokenizer, tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()  # nothing here reads weights
    return tmp_path / "model"


def test_configuration_and_tokenizer_are_read_without_weights(folder, tokenizer) -> None:
    files = ModelFiles(ModelConfig(source=str(folder)))
    assert files.name == str(folder)
    assert (files.config.hidden_size, files.config.num_hidden_layers) == (32, 1)
    assert files.tokenizer.get_vocab() == tokenizer.get_vocab()


def test_generation_configuration_is_the_file_or_made_from_the_configuration(folder, tokenizer) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert ModelFiles(ModelConfig(source=str(folder))).generation_config.eos_token_id == [2, 7]
    (folder / "generation_config.json").unlink()
    assert ModelFiles(ModelConfig(source=str(folder))).generation_config.eos_token_id == tokenizer.eos_token_id


def test_a_damaged_file_is_an_error_of_ours(folder) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load model"):
        _ = ModelFiles(ModelConfig(source=str(folder))).config
