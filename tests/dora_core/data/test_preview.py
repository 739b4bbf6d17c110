"""Preview of inputs: mapping, counts, shown records, bad rows, and whether a run would accept the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dora_core.config.data import DataConfig
from dora_core.config.method import Grouping
from dora_core.data.acceptance import Wanted
from dora_core.data.preview import preview_data
from dora_core.data.previewed import Preview
from dora_core.losses import parse_loss


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rated(i: int, **more: Any) -> dict[str, Any]:
    row = {"prompt": f"question {i}", "responses": [f"good {i}", f"bad {i}"], "rewards": [2, 1], "sources": ["human", "lm"]}
    return row | more


def data(*train: dict[str, Any], **more: Any) -> DataConfig:
    return DataConfig.model_validate({"train": list(train), "holdout_fraction": 0.3} | more)


def preview(config: DataConfig, **more: Any) -> Preview:
    return preview_data(config, **more)[0]


def test_a_good_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [rated(i, annotator=f"n{i}") for i in range(40)])
    found = preview(data({"path": path}))
    (item,) = found.inputs
    assert found.accepted and found.factors.possible and found.factors.needed
    assert (item.reader, item.shape, item.rows, item.complete, item.bad) == ("jsonl", "list", 40, True, 0)
    assert item.golden == ["human"] and "annotator" in item.mapping
    uses = {use.column: use.use for use in item.columns}
    assert uses == {"prompt": "used", "responses": "used", "rewards": "used", "sources": "used", "annotator": "carried"}
    assert found.total.splits.keys() == {"train", "eval"} and sum(found.total.preferences.values()) == 40
    shown = item.shown[0]
    assert len(item.shown) == 3 and shown.row == 0 and json.loads(shown.extra or "") == {"annotator": "n0"}
    assert [(one.text, one.reward, one.source) for one in shown.responses] == [("good 0", 2.0, "human"), ("bad 0", 1.0, "lm")]


def test_a_preset_is_named_with_what_it_stands_for(tmp_path: Path) -> None:
    turns = "\n\nHuman: How do I clean a thing {0}?\n\nAssistant: {1} {0}."
    rows = [{"chosen": turns.format(i, "Wipe it"), "rejected": turns.format(i, "No idea")} for i in range(30)]
    found = preview(data({"path": write(tmp_path / "hh.jsonl", rows), "source": "human"}))
    (item,) = found.inputs
    assert (item.preset, item.recognised, item.shape) == ("hh", True, "pair") and "shape: pair" in item.mapping
    assert found.accepted and not found.factors.possible and "every response is of a trusted source" in found.factors.why
    assert any("h cannot be estimated" in text for text in found.warnings)
    without = preview(data({"path": item.path, "source": "human"}), wanted=Wanted("erm", uses_factors=False))
    assert not without.factors.needed and not any("h cannot be estimated" in text for text in without.warnings)


def test_the_use_of_the_rows_is_checked(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {i}", "completion": f"a {i}", "label": i % 2 == 0, "lang": "en"} for i in range(40)]
    config = data({"path": write(tmp_path / "kto.jsonl", rows), "source": "human"})
    found = preview(config, wanted=Wanted(loss=parse_loss("dpo"), groups=(Grouping(column="land"),)))
    assert found.refusals[0].startswith("data.train[0]: rows are unpaired") and "bco or kto" in found.refusals[0]
    assert found.refusals[1].startswith("evaluate.groups[0]: no held-out input carries the column 'land' → did you mean 'lang'?")
    assert preview(config, wanted=Wanted(loss=parse_loss("kto"), groups=(Grouping(column="lang"),))).accepted


def test_a_split_column_without_evaluation_records_is_replaced_by_the_hash(tmp_path: Path) -> None:
    """As ``ingest`` does: refused only where the hash of the prompt holds nothing out either."""
    rows = [rated(i, split="train") for i in range(30)]
    assert preview(data({"path": write(tmp_path / "a.jsonl", rows)})).accepted
    alone = preview(data({"path": write(tmp_path / "b.jsonl", [rated(0, split="train")])}))
    assert any("none of 1 records falls into the eval split" in text for text in alone.refusals)


def test_training_records_of_held_out_prompts(tmp_path: Path) -> None:
    same = {"path": write(tmp_path / "a.jsonl", [rated(i) for i in range(10)])}
    more = {"path": write(tmp_path / "b.jsonl", [rated(i) for i in range(8, 20)])}
    (refusal,) = preview(data(same, eval=[same])).refusals
    assert "none of 10 records falls into the train split → the prompts of all 10 training records are held out, too" in refusal
    found = preview(data(more, eval=[same]))
    assert found.accepted and any("2 of 12 training records are left out of training" in text for text in found.warnings)
    refused = preview(data(more, eval=[same], split_overlap="refuse"))
    assert "2 of 10 evaluation records have a prompt that training data has, too" in refused.refusals[0]
    allowed = preview(data(same, eval=[same], split_overlap="allow"))
    assert allowed.accepted and any("evaluation measures memory" in text for text in allowed.warnings)


def test_a_sample_says_its_size(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [rated(i) for i in range(50)])
    found = preview(data({"path": path}), rows=10)
    (item,) = found.inputs
    assert (item.rows, item.complete, item.counts.records) == (10, False, 10)
    assert any("first 10 rows" in text for text in found.warnings)
    exact = preview(data({"path": path}), rows=50).inputs[0]
    assert exact.complete and exact.rows == 50


def test_first_bad_row_and_verdict(tmp_path: Path) -> None:
    rows = [rated(i) for i in range(30)]
    rows[7]["rewards"] = [1, "4,5"]
    path = write(tmp_path / "a.jsonl", rows)
    found, _, bad = preview_data(data({"path": path}), keep=10)
    (item,) = found.inputs
    assert item.bad == 1 and item.first_bad is not None and item.first_bad.row == 7 and "rewards" in item.first_bad.text
    assert not found.accepted and "1 of 30 rows in data.train are bad" in found.refusals[0] and "row 7 of" in found.refusals[0]
    assert [one.row for one in bad] == [7]
    assert preview(data({"path": path}, max_bad_fraction=0.1)).accepted


def test_an_input_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    good = write(tmp_path / "a.jsonl", [rated(i) for i in range(20)])
    open_question = write(tmp_path / "b.jsonl", [rated(i, system_prompt="You are a helpful clerk.") for i in range(20)])
    found = preview(data({"path": good}, {"path": open_question}, {"path": str(tmp_path / "none.jsonl")}))
    first, second, third = found.inputs
    assert first.counts.records == 20 and not first.refused
    assert "need a decision" in second.refused and "context: {system: system_prompt}" in second.hint
    assert "none.jsonl" in third.refused
    assert not found.accepted and len(found.refusals) == 2


def test_without_a_trusted_source(tmp_path: Path) -> None:
    rows = [rated(i, sources=["one-lm", "other-lm"]) for i in range(30)]
    found = preview(data({"path": write(tmp_path / "a.jsonl", rows)}))
    assert not found.accepted and "no source matches data.golden_sources" in found.refusals[0] and "one-lm, other-lm" in found.refusals[0]
    golden = write(tmp_path / "g.jsonl", [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(20)])
    helped = preview(data({"path": str(tmp_path / "a.jsonl")}, golden=[{"path": golden}]))
    assert helped.accepted and helped.factors.possible and "20 rows of data.golden" in helped.factors.why
    assert helped.total.records == 30, "golden rows are not counted among the records"


def test_split_column_and_own_evaluation_data(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [rated(i, split="test" if i % 4 == 0 else "train") for i in range(40)])
    assert preview(data({"path": path})).total.splits == {"eval": 10, "train": 30}
    plain = write(tmp_path / "b.jsonl", [rated(100 + i) for i in range(40)])
    held = write(tmp_path / "c.jsonl", [rated(200 + i) for i in range(8)])
    assert preview(data({"path": plain}, eval=[{"path": held}])).total.splits == {"eval": 8, "train": 40}


def test_findings_of_the_suspicion_rules(tmp_path: Path) -> None:
    rows = [rated(i, prompt=f"a longer question {i}", responses=[f"a longer question {i} good", "bad"]) for i in range(30)]
    path = write(tmp_path / "a.jsonl", rows)
    found = preview(data({"path": path}))
    assert "response_begins_with_prompt" in {finding.rule for finding in found.findings}
    assert preview(data({"path": path}), suspect=False).findings == []


def test_repeated_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [rated(i % 20) for i in range(40)])
    (item,) = preview(data({"path": path})).inputs
    assert (item.duplicates, item.bad, item.counts.records, item.rows) == (20, 0, 20, 40)


def test_kept_records_are_shared_by_the_inputs(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.jsonl", [rated(i + 100 * at) for i in range(30)]) for at, name in enumerate("ab")]
    _, records, _ = preview_data(data(*({"path": path} for path in paths)), keep=20)
    assert [record.file for record in records] == [paths[0]] * 10 + [paths[1]] * 10


def test_progress(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [rated(i) for i in range(2100)])
    calls: list[tuple[str, int]] = []
    preview(data({"path": path}), progress=lambda what, done, total: calls.append((what, done)), suspect=False)
    assert calls == [("data.train[0]", 1024), ("data.train[0]", 2048)]


def test_goals_and_votes_are_shown_as_the_policy_will_read_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [rated(i) for i in range(30)])
    found = preview(data({"path": path}, goal={"best": 2, "digits": 0}), wanted=Wanted("erm", uses_factors=False))
    texts = [record.prompt[0]["content"] for record in found.inputs[0].shown]
    assert all(text.startswith("Give an answer of quality ") for text in texts)
    splits = found.total.splits
    assert splits["train"] + splits["eval"] == found.total.records and splits["train"] == 2 * (30 - splits["eval"])
    battles = [{"prompt": f"q{i}", "x": "one", "y": "two", "n": 3, "m": 1, "model": "lm"} for i in range(30)]
    keys = {"shape": "ab", "columns": {"a": "x", "b": "y", "source": "model"}, "votes": {"counts": {"a": "n", "b": "m"}}}
    voted = preview(data({"path": write(tmp_path / "b.jsonl", battles)} | keys), wanted=Wanted("erm", uses_factors=False))
    assert voted.inputs[0].shown[0].label_probability == pytest.approx(3.5 / 5)


def test_trajectories_are_shown_as_transcripts_with_their_turns(tmp_path: Path) -> None:
    def talk(*texts: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]

    rows = [{"chosen": talk("q", "a", "r", "b"), "rejected": talk("q", "c")}]
    [one] = preview(data({"path": write(tmp_path / "a.jsonl", rows), "source": "human", "messages": {"learn_turns": "all"}})).inputs
    [record] = one.shown
    assert record.prompt == talk("q") and [response.text for response in record.responses] == ["a\n\nUser: r\n\nAssistant: b", "c"]
    assert record.responses[0].turns == talk("q", "a", "r", "b")[1:] and record.responses[1].turns == []
    assert "1 responses of several turns, of which all turns of the assistant are learned" in one.notes
