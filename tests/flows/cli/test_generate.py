"""`dora generate`: options become settings, mistakes are named before a model is loaded. Its responses: ``files/test_generation.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from dora_core.models.loading import train_tokenizer
from tests.flows.cli.files.commands import write
from tests.flows.cli.invoked import assert_help, assert_wrong


@pytest.fixture
def prompts(own_home: Path, tmp_path: Path) -> Path:
    return write(tmp_path / "prompts.jsonl", [{"prompt": "Why is the sea salt?"}])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a tokenizer and no weights."""
    train_tokenizer(["Why is the sea salt?"], 300).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_help_has_an_example_and_the_options() -> None:
    assert_help("generate", "--output", "--model", "--endpoint", "--samples", "--workers", "--overwrite")


def test_an_output_is_needed(prompts: Path) -> None:
    assert_wrong("generate", prompts, says="Missing option '--output' / '-o'")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--samples", "0"], "generate.samples"),
        (["--temperature", "-1"], "generate.temperature"),
        (["--top-p", "1.5"], "generate.top_p"),
        (["--set", "generate.sample=2"], "did you mean"),
        (["--workers", "-1"], "Input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_setting_is_named(options: list[str], says: str, prompts: Path, tmp_path: Path) -> None:
    assert_wrong("generate", prompts, "-o", tmp_path / "s.jsonl", "--model", tmp_path, *options, says=says)
    assert not (tmp_path / "s.jsonl").exists()


def test_an_output_of_another_kind_is_refused(prompts: Path, model: Path, tmp_path: Path) -> None:
    assert_wrong("generate", prompts, "-o", tmp_path / "s.csv", "--model", model, says=".parquet or .jsonl")


def test_a_file_that_is_there_is_not_replaced(prompts: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text("mine")
    assert_wrong("generate", prompts, "-o", tmp_path / "s.jsonl", "--model", model, says="--overwrite")
    assert (tmp_path / "s.jsonl").read_text() == "mine"
