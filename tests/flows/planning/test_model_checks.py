"""Checks of the policy's files at plan time."""

from __future__ import annotations

import pytest
import torch

from dora_core.config.method import ModelConfig
from dora_core.errors import ModelError
from dora_core.models.loading import build_policy, save_model, train_tokenizer
from flows.config.models import RealignConfig
from flows.planning import model_checks
from flows.planning.model_checks import Described, describe_policy


@pytest.fixture
def config(tmp_path) -> RealignConfig:
    """A configuration with a small saved model as policy."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["the cat sat on a mat"], 300)
    save_model(build_policy(ModelConfig(hidden_size=32, layers=1, heads=2), tokenizer, 64), tokenizer, tmp_path / "model")
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    return RealignConfig.model_validate(
        {
            "project": "checks",
            "data": {"train": [{"path": str(tmp_path / "d.jsonl")}]},
            "policy": {"source": str(tmp_path / "model")},
        }
    )


def test_tiny_has_no_files_and_nothing_is_checked(config, monkeypatch) -> None:
    def fail(files, config):
        raise AssertionError("no check runs")

    monkeypatch.setattr(model_checks, "CHECKS", (fail,))
    assert describe_policy(config.evolve(policy=ModelConfig())) == Described()


def test_lines_and_notes_of_all_checks_are_joined_and_the_first_refusal_ends_them(config, monkeypatch) -> None:
    def width(files, config):
        return Described(lines=(f"width {files.config.hidden_size}",))

    def doubt(files, config):
        return Described(notes=("a doubt",))

    def refuse(files, config):
        raise ModelError("does not fit", hint="use another")

    monkeypatch.setattr(model_checks, "CHECKS", (width, doubt))
    assert describe_policy(config) == Described(("width 32",), ("a doubt",))
    monkeypatch.setattr(model_checks, "CHECKS", (width, refuse))
    with pytest.raises(ModelError, match="does not fit"):
        describe_policy(config)
