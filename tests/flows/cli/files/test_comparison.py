"""`dora evaluate OURS THEIRS`: two judged files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dora_core.config.method import EvaluateConfig
from dora_core.errors import ConfigError, DataError
from flows.cli import evaluate
from flows.cli.files.comparison import compare_files
from tests.flows.cli.files.commands import write


def test_win_rate_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompt a: 2 · 2 pairs, 3 wins and a tie; b: one loss; c: only ours. A prompt counts the same as a string and as a message."""
    ours = [("a", 2.0), ("a", 1.0), ("b", 0.0), ("c", 9.0)]
    theirs = [("b", 5.0), ("a", 1.0), ("a", 0.5), ("b", None)]
    write(tmp_path / "ours.jsonl", [{"prompt": p, "response": "x" * 4, "score": s} for p, s in ours])
    messages = [{"prompt": [{"role": "user", "content": p}], "response": "x" * 9, "score": s} for p, s in theirs]
    write(tmp_path / "theirs.jsonl", messages)
    facts = compare_files(tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl", EvaluateConfig())
    found = facts.wins["theirs.jsonl"]
    assert [getattr(found, kind).value for kind in ("win", "tie", "lose", "win_rate")] == [0.375, 0.125, 0.5, 0.4375]
    assert (found.records, found.records_left_out, found.pairs_without_score) == (2, 1, 1)
    assert found.length.model_dump() == {"unit": "characters", "policy": 4.0, "opponent": 9.0}
    assert found.sign_test_p == 1.0

    report = tmp_path / "new" / "report.md"
    for as_json in (True, False):
        evaluate.compare(tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl", ["bootstrap_samples=200"], report, as_json)
    document, end = json.JSONDecoder().raw_decode(printed := capsys.readouterr().out)
    assert document["wins"]["theirs.jsonl"]["win_rate"]["value"] == 0.4375
    assert "37.5%  12.5%  50.0%" in printed[end:]
    assert "| all | 37.5% | 12.5% | 50.0% |" in report.read_text()
    with pytest.raises(ConfigError, match="bootstrap_sample"):
        evaluate.compare(tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl", ["bootstrap_sample=200"], None, False)


def test_files_that_cannot_be_compared(tmp_path: Path) -> None:
    scored = write(tmp_path / "a.jsonl", [{"prompt": "a", "response": "r", "score": 1.0}])
    cases = {
        "cannot read": tmp_path / "nothing.jsonl",
        "has no column 'score'": write(tmp_path / "b.jsonl", [{"prompt": "a", "response": "r", "scores": 1.0}]),
        "has no column 'response'": write(tmp_path / "c.jsonl", [{"prompt": "a", "score": 1.0}]),
        "neither `prompt` nor `record_id`": write(tmp_path / "d.jsonl", [{"record_id": "a", "response": "r", "score": 1.0}]),
        "to the same prompt": write(tmp_path / "e.jsonl", [{"prompt": "b", "response": "r", "score": 1.0}]),
        "a score is not a number": write(tmp_path / "f.jsonl", [{"prompt": "a", "response": "r", "score": "good"}]),
    }
    for message, other in cases.items():
        with pytest.raises(DataError, match=message) as caught:
            compare_files(scored, other, EvaluateConfig())
        assert caught.value.hint
