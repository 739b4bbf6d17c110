"""Tasks and answers as files, and votes counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from dora_core.errors import DataError
from flows.cli.files.label_tasks import ALLOWED, LABELLING, Label, Task, Vote, count_votes, read_votes, write_tasks

TASK = Task("r1", "How?", "like this", "like that")


def annotated(*annotations: dict[str, Any], task: Task = TASK) -> dict[str, Any]:
    """A row of an export, as Label Studio writes it."""
    kept = [{"id": 10 + i, "completed_by": 1, "was_cancelled": False} | one for i, one in enumerate(annotations)]
    return {"id": 1, **task.for_label_studio(), "annotations": kept, "predictions": [], "project": 3}


def selected(side: str) -> dict[str, Any]:
    value = {"from_name": "comparison", "to_name": "answer1,answer2", "type": "pairwise", "value": {"selected": side}}
    return {"result": [value]}


def otherwise(choice: str) -> dict[str, Any]:
    return {"result": [{"from_name": "otherwise", "to_name": "prompt", "type": "choices", "value": {"choices": [choice]}}]}


def exported(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "export.json").write_text(json.dumps(list(rows)))
    return folder / "export.json"


def test_the_side_tells_nothing_about_the_label_and_follows_from_the_seed() -> None:
    pairs = [(f"good {i}", f"bad {i}") for i in range(200)]
    tasks = [Task.of(f"r{i}", "q", pair, seed=0) for i, pair in enumerate(pairs)]
    assert tasks == [Task.of(f"r{i}", "q", pair[::-1], seed=0) for i, pair in enumerate(pairs)], "not the order they are given in"
    left = sum(task.a.startswith("good") for task in tasks)
    assert 70 < left < 130  # ± 4 standard deviations of 200 coins
    assert tasks != [Task.of(f"r{i}", "q", pair, seed=1) for i, pair in enumerate(pairs)]


def test_files_hold_the_texts_and_no_sign_of_a_label() -> None:
    files = write_tasks([TASK])
    assert json.loads(files["tasks.json"]) == [
        {"data": {"record_id": "r1", "prompt": "How?", "answer1": "like this", "answer2": "like that"}}
    ]
    assert json.loads(files["labels.jsonl"]).keys() == {"record_id", "prompt", "a", "b", "preferred", "annotator"}
    names = {f"${name}" for name in json.loads(files["tasks.json"])[0]["data"]}
    shown = {element.get("value") for element in ElementTree.fromstring(LABELLING).iter("Text")}
    assert shown == names - {"$record_id"} and files["labelling.xml"] == LABELLING


def test_every_kind_of_answer_of_an_export(tmp_path: Path) -> None:
    answers = [selected("left"), selected("right"), otherwise("tie"), otherwise("cannot tell"), {"result": []}, {"was_cancelled": True}]
    votes = list(read_votes(exported(tmp_path, annotated(*answers), annotated(task=Task("r2", "q", "x", "y")))))
    assert [vote.answer for vote in votes] == ["a", "b", "tie", "skipped", "skipped", "skipped", None]
    assert votes[0].task == TASK and votes[0].annotator == "1"


def test_an_annotator_may_be_an_object_of_users(tmp_path: Path) -> None:
    by = {"completed_by": {"id": 4, "email": "ann@example.org"}}
    assert next(read_votes(exported(tmp_path, annotated(selected("left") | by)))).annotator == "ann@example.org"


def test_filled_lines(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    lines = [TASK.for_json_lines() | {"preferred": value, "annotator": "ann"} for value in (*ALLOWED, None, "")]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [vote.answer for vote in read_votes(file)] == ["a", "b", "tie", "skipped", None, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(TASK.for_json_lines() | {"preferred": "left"}), "preferred is 'left'"),
        (json.dumps([annotated(selected("left") | {"result": selected("left")["result"] + otherwise("tie")["result"]})]), "says left, tie"),
        (json.dumps([{"id": 1, "prompt": "How?", "comparison": "left"}]), "neither a task of Label Studio"),
        (json.dumps({"preferred": "a", "record_id": "r1"}), "no text in prompt, a, b"),
        ("{", "cannot read"),
    ],
)
def test_what_cannot_be_an_answer_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "answers").write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_votes(tmp_path / "answers"))


def vote(answer: Any, by: str | None, record: str = "r1", key: str | None = None) -> Vote:
    return Vote(Task(record, "q", "x", "y"), key or f"{record} {by}", answer, by)


def test_votes_are_counted_by_task() -> None:
    votes = [vote("a", "ann"), vote("a", "bob"), vote("b", "cy"), vote("tie", "dee")]  # x is preferred by 2 of the 3 that prefer one
    votes += [vote("a", "ann", "r2"), vote("b", "bob", "r2")]  # as many for each: a tie
    votes += [vote("b", "ann", "r3"), vote("tie", "bob", "r3"), vote("tie", "cy", "r3")]  # most see a tie
    votes += [vote("skipped", "ann", "r4"), vote(None, None, "r5"), vote("b", None, "r6")]
    counted = count_votes(votes)
    assert counted.labels == [Label("r1", "x", "y", 2 / 3, ("ann", "bob")), Label("r6", "y", "x", 1.0, ())]
    expected = {"tasks": 6, "answers": 11, "preferences": 2, "contested": 1, "ties": 2, "skipped": 1, "not answered": 1}
    assert {name: counted.counts[name] for name in expected} == expected


def test_the_same_answer_in_two_exports_counts_once_and_the_later_one_holds() -> None:
    assert count_votes([vote("a", "ann")] * 3).counts["answers"] == 1
    revised = count_votes([vote("a", "ann"), vote("b", "ann")])
    assert revised.labels == [Label("r1", "y", "x", 1.0, ("ann",))] and revised.counts["contested"] == 0


def test_two_files_without_names_are_of_two_people(tmp_path: Path) -> None:
    for name, answer in (("one", "a"), ("two", "b")):
        (tmp_path / name).write_text(json.dumps(TASK.for_json_lines() | {"preferred": answer}))
    one, two = (list(read_votes(tmp_path / name)) for name in ("one", "two"))
    assert count_votes([*one, *two, *one]).counts["ties"] == 1
