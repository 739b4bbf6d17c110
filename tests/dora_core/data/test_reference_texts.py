"""Texts of evaluation files, whatever their schema."""

from __future__ import annotations

from pathlib import Path

from dora_core.config.data import DataConfig
from dora_core.data.reference_texts import reference_texts
from tests.dora_core.data.written_inputs import write_jsonl


def test_reference_texts_are_all_texts_at_any_depth(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "exam.jsonl", [{"question": "Why?", "choices": [{"text": "A"}, {"text": "B"}], "answer": 1}])
    data = DataConfig.model_validate({"train": [{"path": "train.jsonl"}], "decontaminate": [str(tmp_path / "exam.jsonl")]})
    assert list(reference_texts(data, {})) == ["Why?", "A", "B"]
