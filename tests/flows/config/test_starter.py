"""First configurations from data files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dora_core.errors import DataError
from flows.config.found_inputs import splits_at
from flows.config.loading import load_config
from flows.config.models import RealignConfig
from flows.config.starter import Starter, starter, title


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rated(n: int = 30, sources: tuple[str, str] = ("human-a", "lm"), **more: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": f"question {i}", "responses": [f"good {i}", f"bad {i}"], "rewards": [2, 1], "sources": list(sources)} | more
        for i in range(n)
    ]


def configured(made: Starter, folder: Path) -> RealignConfig:
    """The written configuration, read as a file."""
    (folder / "c.yaml").write_text(made.text)
    return load_config(folder / "c.yaml")


def test_a_source_named_like_people_is_trusted_and_said_so(tmp_path: Path) -> None:
    made = starter([write(tmp_path / "prefs.jsonl", rated())], folder=tmp_path)
    config = configured(made, tmp_path)
    assert config.data.golden_sources == ["human-a"] and config.align.objective.name == "dora" and config.sft.data == "golden"
    assert made.assumed == ("trusted: human-a, by name",) and not made.decide and made.preview.accepted
    assert "path: prefs.jsonl" in made.text and config.project == "prefs"


def test_without_a_likely_source_the_choice_stays_open(tmp_path: Path) -> None:
    made = starter([write(tmp_path / "prefs.jsonl", rated(sources=("gpt-4", "alpaca")))], folder=tmp_path)
    config = configured(made, tmp_path)
    assert config.align.objective.name == "erm" and config.sft.data == "best" and not made.is_trusted
    assert "# golden_sources: [gpt-4]" in made.text and "# golden_sources: [alpaca]" in made.text and "DECIDE" in made.text
    assert made.decide and made.preview.accepted


def test_trusted_responses_are_found_or_given(tmp_path: Path) -> None:
    prefs = write(tmp_path / "prefs.jsonl", rated(sources=("gpt-4", "alpaca")))
    golden = write(tmp_path / "sft.jsonl", [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(20)])
    for made in (starter([prefs, golden], folder=tmp_path), starter([prefs], [golden], folder=tmp_path)):
        config = configured(made, tmp_path)
        assert [item.path for item in config.data.golden] == [golden] and config.align.objective.name == "dora"
        assert made.preview.factors.possible


def test_enough_trusted_preferences_choose_the_objective_by_measuring(tmp_path: Path) -> None:
    def chosen(trusted: int, **more: Any) -> tuple[str, Starter]:
        by_people = [row | {"prompt": f"asked {i}", **more} for i, row in enumerate(rated(trusted, ("human", "human")))]
        made = starter([write(tmp_path / "prefs.jsonl", rated(50, ("human", "lm")) + by_people)], folder=tmp_path)
        return configured(made, tmp_path).align.objective.name, made

    name, made = chosen(200)
    assert name == "auto" and "objective: auto, as 200 preferences are between responses of trusted sources" in made.assumed
    assert made.preview.factors.possible
    name, made = chosen(199)
    assert name == "dora" and not [line for line in made.assumed if "objective" in line]


def test_evaluation_data_by_name(tmp_path: Path) -> None:
    train, test = write(tmp_path / "train.jsonl", rated(40)), write(tmp_path / "test.jsonl", rated(10, prompt="held out"))
    made = starter([train, test], folder=tmp_path)
    config = configured(made, tmp_path)
    assert [item.path for item in config.data.eval] == [str(Path(test).resolve())] and "ASSUMED evaluation data" in made.text
    assert "holdout_fraction" not in made.text


def test_splits_of_a_folder(tmp_path: Path) -> None:
    for name, rows in {"train_prefs": 30, "test_prefs": 8, "train_sft": 5}.items():
        write(tmp_path / "data" / f"{name}-00000-of-00001.jsonl", rated(rows, prompt=f"in {name}"))
    made = starter([str(tmp_path / "data")], folder=tmp_path)
    config = configured(made, tmp_path)
    assert [item.split for item in (*config.data.train, *config.data.eval)] == ["train_prefs", "test_prefs"]
    assert made.preview.total.splits == {"eval": 8, "train": 30}
    assert "ASSUMED split train_prefs among those there: test_prefs, train_prefs, train_sft" in made.text
    assert splits_at(tmp_path / "c.yaml") == []


def test_open_columns_are_decided_in_sight(tmp_path: Path) -> None:
    rows = [row | {"system_prompt": "You are a careful clerk.", "confidence": 0.5} for row in rated()]
    made = starter([write(tmp_path / "prefs.jsonl", rows)], folder=tmp_path)
    source = configured(made, tmp_path).data.train[0]
    assert source.context.system == "system_prompt" and source.carry == ["confidence"]
    assert any("system prompt" in text for text in made.assumed) and any("confidence" in text for text in made.decide)


def test_columns_that_would_thin_the_records_are_refused(tmp_path: Path) -> None:
    rows = [row | {"tools": [{"type": "function", "function": {"name": "f"}}]} for row in rated()]
    with pytest.raises(DataError, match="need a decision") as error:
        starter([write(tmp_path / "prefs.jsonl", rows)], folder=tmp_path)
    assert "context: {tools: tools}" in error.value.hint


def test_a_preset_is_written_with_what_it_stands_for(tmp_path: Path) -> None:
    turns = "\n\nHuman: How do I clean a thing {0}?\n\nAssistant: {1} {0}."
    rows = [{"chosen": turns.format(i, "Wipe it"), "rejected": turns.format(i, "No idea")} for i in range(30)]
    made = starter([write(tmp_path / "harmless" / "train.jsonl", rows)], folder=tmp_path)
    source = configured(made, tmp_path).data.train[0]
    assert (source.preset, source.source) == ("hh", "harmless") and "#   {shape: pair}" in made.text
    assert any("one source" in text for text in made.decide) and "golden: [{path: …}]" in made.text


def test_approvals_take_a_loss_that_reads_them(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "completion": f"c{i}", "label": i % 2 == 0} for i in range(40)]
    made = starter([write(tmp_path / "thumbs.jsonl", rows)], folder=tmp_path)
    assert configured(made, tmp_path).align.loss.name == "kto"


def test_no_preference_data(tmp_path: Path) -> None:
    path = write(tmp_path / "sft.jsonl", [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(20)])
    with pytest.raises(DataError, match="no input holds preference data"):
        starter([path], folder=tmp_path)
    with pytest.raises(DataError, match="no file or folder"):
        starter([str(tmp_path / "none.jsonl")], folder=tmp_path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/prefs.jsonl", "prefs"),
        ("/a/Ultra Feedback/train-00000-of-00001.parquet", "ultra-feedback"),
        ("/a/b/data.json.gz", "b"),
        ("/ß.csv", "data"),
    ],
)
def test_titles(path: str, name: str) -> None:
    assert title(path) == name
