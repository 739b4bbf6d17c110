"""From a run's records to labels of people and back into its data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from dora_core.testbed.mixture import Testbed, TestbedConfig
from tests.flows.cli.invoked import document, invoke

pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def config(own_home: Path, tmp_path: Path) -> Path:
    world = TestbedConfig(prompts=60, responses_per_prompt=2, sources=1, alpha=0.4, one_source_per_record=True)
    Testbed(world).write(tmp_path / "data.parquet")
    file = tmp_path / "c.yaml"
    content = {"project": "demo", "data": {"train": [{"path": str(tmp_path / "data.parquet")}]}, "align": {"objective": {"name": "erm"}}}
    file.write_text(yaml.safe_dump(content | {"exchange": {"buckets": 16, "folds": 2}}))
    return file


def answered(folder: Path, name: str, **changes: Any) -> tuple[Path, list[dict[str, Any]]]:
    """An export in which people prefer the longer text, see a tie in the first task and skip the second; changes: of the first task."""
    rows = json.loads((folder / "tasks.json").read_text())
    for i, row in enumerate(rows):
        side = "left" if len(row["data"]["answer1"]) >= len(row["data"]["answer2"]) else "right"
        value = {"type": "choices", "value": {"choices": ["tie"]}} if i == 0 else {"type": "pairwise", "value": {"selected": side}}
        row["annotations"] = [{"id": 100 + i, "completed_by": 7, "was_cancelled": i == 1, "result": [value]}]
    rows[0]["data"] |= changes
    (folder / name).write_text(json.dumps(rows))
    return folder / name, rows


def test_labels_come_back_as_golden_labels(config: Path, tmp_path: Path) -> None:
    folder, people = tmp_path / "labels", tmp_path / "people.jsonl"
    found = document("label", "suggest", "-c", config, "-n", 12, "-o", folder)
    assert found["tasks"] == 12 and sorted(p.name for p in folder.iterdir()) == [
        "labelling.xml",
        "labels.jsonl",
        "ranking.jsonl",
        "tasks.json",
    ]
    again = {p.name: p.read_bytes() for p in folder.iterdir()}
    document("label", "suggest", "-c", config, "-n", 12, "-o", folder)
    assert again == {p.name: p.read_bytes() for p in folder.iterdir()}
    export, rows = answered(folder, "export.json")
    imported = document("label", "import", export, "-c", config, "-o", people)
    assert {name: imported["counts"][name] for name in ("tasks", "preferences", "ties", "skipped")} == {
        "tasks": 12,
        "preferences": 10,
        "ties": 1,
        "skipped": 1,
    }
    labels = [json.loads(line) for line in people.read_text().splitlines()]
    assert [label["id"] for label in labels] == [f"{row['data']['record_id']}~people" for row in rows[2:]]
    assert all(len(label["chosen"]) >= len(label["rejected"]) and label["labelled_by"] == "human" for label in labels)
    before = people.read_bytes()
    document("label", "import", export, export, "-c", config, "-o", people)
    assert people.read_bytes() == before
    # with the printed lines the data has ten more golden labels, of the same prompts, and the pairs are not suggested again
    more = imported["configuration"]
    content = yaml.safe_load(config.read_text())
    content["data"]["train"] += more["data"]["train"]
    config.write_text(yaml.safe_dump(content | {"trust": more["trust"]}))
    next_time = document("label", "suggest", "-c", config, "-n", 99, "-o", tmp_path / "next")
    assert next_time["facts"]["golden_labels"] == found["facts"]["golden_labels"] + 10
    assert next_time["facts"]["candidates"] == found["facts"]["candidates"] - 10
    records = document("data", "export", "-c", config, "-o", tmp_path / "all.parquet", "--format", "records")
    table = {row["record_id"]: row for row in pq.read_table(tmp_path / "all.parquet").to_pylist()}
    assert records["records"] == 70 and {table[label["id"]]["split"] for label in labels} == {"train"}


def test_an_export_is_also_read_by_the_preset(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    document("label", "suggest", "-c", config, "-n", 5, "-o", folder)
    export, rows = answered(folder, "export.json")
    export.write_text(json.dumps(rows[2:]))
    (preview,) = document("data", "preview", export, code=2)["inputs"]  # so few records that none is held out
    assert preview["preset"] == "label_studio" and (preview["rows"], preview["bad"], preview["counts"]["preferences"]) == (
        3,
        0,
        {"train": 3},
    )


def test_answers_about_other_records_or_texts_are_refused(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    document("label", "suggest", "-c", config, "-n", 3, "-o", folder)
    for changes, says in (
        ({"record_id": "stranger"}, "about no training record of this data: stranger"),
        ({"answer1": "edited"}, "about other texts"),
    ):
        export, _ = answered(folder, "edited.json", **changes)
        done = invoke("label", "import", export, "-c", config, "-o", tmp_path / "people.jsonl")
        assert done.code == 2 and says in " ".join(done.error.replace("│", " ").split()) and not (tmp_path / "people.jsonl").exists()


def test_answers_are_not_overwritten(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    document("label", "suggest", "-c", config, "-n", 3, "-o", folder)
    lines = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    filled = "".join(json.dumps(line | {"preferred": "b"}) + "\n" for line in lines)
    (folder / "labels.jsonl").write_text(filled)
    done = invoke("label", "suggest", "-c", config, "-n", 3, "-o", folder)
    assert done.code == 2 and "labels.jsonl with other content" in " ".join(done.error.split())
    assert (folder / "labels.jsonl").read_text() == filled
    document("label", "import", folder / "labels.jsonl", "-c", config, "-o", tmp_path / "people.jsonl")
    revised = "".join(json.dumps(line | {"preferred": "a"}) + "\n" for line in lines)
    (folder / "labels.jsonl").write_text(revised)
    done = invoke("label", "import", folder / "labels.jsonl", "-c", config, "-o", tmp_path / "people.jsonl")
    assert done.code == 2 and "holds other labels" in " ".join(done.error.split())


def test_a_run_without_records_or_nothing_calibrated_is_refused(config: Path, tmp_path: Path) -> None:
    done = invoke("label", "suggest", "-c", config, "--set", "align.objective.name=dora", "-o", tmp_path / "x")
    assert done.code == 2 and "nothing was calibrated yet" in " ".join(done.error.split())
    done = invoke("label", "suggest", "--run", "latest", "-o", tmp_path / "x")
    assert done.code == 2 and "there are no runs" in done.error
