"""Files and models that the commands on files work with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers

from dora_core.models.loading import build_policy, save_model, train_tokenizer
from dora_core.testbed.mixture import Testbed
from tests.flows.cli.files.commands import MIXTURE, TINY, write


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``prompts.jsonl``, ``data.parquet`` (preference data of the same prompts), policies ``m0`` and ``m1``, a reward model ``rm``."""
    folder = tmp_path_factory.mktemp("files")
    rows = Testbed(MIXTURE).generate()
    write(folder / "prompts.jsonl", [{"prompt": row["prompt"], "id": row["id"], "task": row["id"][-1]} for row in rows])
    Testbed(MIXTURE).write(folder / "data.parquet")
    tokenizer = train_tokenizer([text for row in rows for text in (row["prompt"], *row["responses"])], TINY.vocab_size)
    for i in range(2):
        torch.manual_seed(i)
        save_model(build_policy(TINY, tokenizer, 256), tokenizer, folder / f"m{i}")
    reward = transformers.LlamaConfig.from_pretrained(folder / "m0", num_labels=1)
    save_model(transformers.LlamaForSequenceClassification(reward), tokenizer, folder / "rm")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Path]:
    """Where a test writes; the working folder, so that paths are short."""
    monkeypatch.setenv("DORA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DORA_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    with mock.patch.dict(os.environ):  # a command sets the environment of its process
        yield tmp_path
