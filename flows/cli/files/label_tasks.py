"""Labelling tasks and their answers as files: Label Studio's JSON, and JSON lines with a field to fill.

A task shows two responses side by side. Which is on the left is a hash of the record and the seed, so that the side tells nothing about the
present label; tasks hold no score, source or label at all. Label Studio's data has the names of its template for human preferences
(``prompt``, ``answer1``, ``answer2``), which the preset ``label_studio`` reads; a pairwise choice is ``left`` or ``right``, a tie or an
answer that cannot be given is a choice of its own beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dora_core.errors import DataError

Answer = Literal["a", "b", "tie", "skipped"]

LABELLING = """\
<View>
  <Header value="Which answer would you rather get?"/>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="comparison" toName="answer1,answer2" leftClass="answer" rightClass="answer"/>
  <View style="display: flex; gap: 1em">
    <View className="answer" style="flex: 1"><Text name="answer1" value="$answer1"/></View>
    <View className="answer" style="flex: 1"><Text name="answer2" value="$answer2"/></View>
  </View>
  <Choices name="otherwise" toName="prompt" choice="single" showInline="true">
    <Choice value="tie" alias="tie"/>
    <Choice value="cannot tell" alias="cannot tell"/>
  </Choices>
</View>
"""
"""Labelling configuration of a Label Studio project."""
FIELD = "preferred"
ALLOWED = {"a": "a", "b": "b", "tie": "tie", "skip": "skipped"}
"""Values of the field :data:`FIELD` → answer."""


@dataclass(frozen=True)
class Task:
    """Two responses to compare, ``a`` on the left."""

    record_id: str
    prompt: str
    a: str
    b: str

    @classmethod
    def of(cls, record_id: str, prompt: str, pair: tuple[str, str], seed: int) -> Task:
        """A task with the sides drawn by hash."""
        first, second = sorted(pair)  # the order of the texts, which no label depends on
        swap = hashlib.sha256(f"{seed}\0{record_id}".encode()).digest()[0] & 1
        return cls(record_id, prompt, *((second, first) if swap else (first, second)))

    def for_label_studio(self) -> dict[str, Any]:
        return {"data": {"record_id": self.record_id, "prompt": self.prompt, "answer1": self.a, "answer2": self.b}}

    def for_json_lines(self) -> dict[str, Any]:
        return {"record_id": self.record_id, "prompt": self.prompt, "a": self.a, "b": self.b, FIELD: None, "annotator": None}


@dataclass(frozen=True)
class Vote:
    """One answer to a task.

    Attributes:
        key: identity of the answer: the same in two exports counts once, the later one.
        answer: None where the task is not answered yet.
    """

    task: Task
    key: str
    answer: Answer | None
    annotator: str | None = None

    @property
    def preferred(self) -> str | None:
        """The preferred text."""
        return self.task.a if self.answer == "a" else self.task.b if self.answer == "b" else None


def write_tasks(tasks: Sequence[Task]) -> dict[str, str]:
    """Texts of the files to write, by name."""
    return {
        "tasks.json": json.dumps([task.for_label_studio() for task in tasks], ensure_ascii=False, indent=1) + "\n",
        "labelling.xml": LABELLING,
        "labels.jsonl": "".join(json.dumps(task.for_json_lines(), ensure_ascii=False) + "\n" for task in tasks),
    }


def read_votes(path: Path) -> Iterator[Vote]:
    """Answers of a file: Label Studio's export as JSON, or JSON lines with the field filled.

    Raises:
        DataError: the file cannot be read, or a row is of neither form.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}", hint="give an export of Label Studio (JSON), or the filled labels.jsonl") from None
    for number, row in enumerate(rows):
        place = f"{path}: row {number}"
        if isinstance(row, dict) and isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list):
            yield from _of_label_studio(row, place)
        elif isinstance(row, dict) and FIELD in row:
            yield _of_json_lines(row, place, path)
        else:
            raise DataError(
                f"{place} is neither a task of Label Studio (data, annotations) nor a line of labels.jsonl ({FIELD})",
                hint="export the project as JSON, not JSON-MIN or CSV",
            )


def _task(given: dict[str, Any], names: tuple[str, str, str, str], place: str) -> Task:
    values = [given.get(name) for name in names]
    if not all(isinstance(value, str) for value in values):
        missing = ", ".join(name for name, value in zip(names, values, strict=True) if not isinstance(value, str))
        raise DataError(f"{place} has no text in {missing}", hint="leave the tasks as `dora label suggest` wrote them")
    return Task(*map(str, values))


def _of_json_lines(row: dict[str, Any], place: str, path: Path) -> Vote:
    task, value = _task(row, ("record_id", "prompt", "a", "b"), place), row[FIELD]
    annotator = None if row.get("annotator") in (None, "") else str(row["annotator"])
    if value not in (None, "", *ALLOWED):
        raise DataError(f"{place}: {FIELD} is {value!r}", hint=f"use one of {', '.join(ALLOWED)}, or null for a task without an answer")
    by = annotator if annotator is not None else f"in {path}"  # without a name, every file counts as one person's
    return Vote(task, f"line {task.record_id} {by}", ALLOWED.get(value), annotator)  # type: ignore[arg-type]


def _of_label_studio(row: dict[str, Any], place: str) -> Iterator[Vote]:
    task = _task(row["data"], ("record_id", "prompt", "answer1", "answer2"), place)
    if not row["annotations"]:
        yield Vote(task, f"task {task.record_id}", None)
    for annotation in row["annotations"]:
        by = annotation.get("completed_by")
        annotator = by.get("email") or by.get("id") if isinstance(by, dict) else by
        key = f"annotation {annotation.get('id', place)}"
        yield Vote(task, key, _answer(annotation, place), None if annotator is None else str(annotator))


def _answer(annotation: dict[str, Any], place: str) -> Answer:
    if annotation.get("was_cancelled"):
        return "skipped"
    values = [part.get("value", {}) for part in annotation.get("result", [])]
    sides = {value["selected"] for value in values if "selected" in value}
    others = {choice for value in values for choice in value.get("choices", [])}
    if len(sides) + len(others) > 1 or sides - {"left", "right"} or others - {"tie", "cannot tell"}:
        found = ", ".join(sorted(map(str, sides | others)))
        raise DataError(
            f"{place}: an annotation says {found}",
            hint="one of left, right, tie and cannot tell; correct it in Label Studio and export again",
        )
    if not sides:
        return "tie" if "tie" in others else "skipped"
    return "a" if sides == {"left"} else "b"


@dataclass(frozen=True)
class Label:
    """A preference of people.

    Attributes:
        probability: share of the votes for the preferred response among those that prefer one.
        annotators: that preferred it, in order; empty where none is named.
    """

    record_id: str
    chosen: str
    rejected: str
    probability: float
    annotators: tuple[str, ...]


@dataclass(frozen=True)
class Counted:
    """Answers by record: ``labels`` in the order of the tasks, and what became of the others."""

    labels: list[Label]
    counts: Counter[str]


def count_votes(votes: Sequence[Vote]) -> Counted:
    """The preference of each task: that of most answers. A tie of people's votes is a tie.

    ``counts`` has ``tasks``, ``answers``, ``preferences``, ``ties``, ``skipped`` (no answer but that it cannot be given), ``not answered``
    and ``contested`` (preferences with votes for both).
    """
    latest = {vote.key: vote for vote in votes}
    by_record: dict[str, list[Vote]] = {}
    for vote in latest.values():
        by_record.setdefault(vote.task.record_id, []).append(vote)
    counts = Counter(tasks=len(by_record), answers=sum(vote.answer is not None for vote in latest.values()))
    labels = []
    for record_id, found in by_record.items():
        for_text = Counter(vote.preferred for vote in found if vote.preferred is not None)
        ties = sum(vote.answer == "tie" for vote in found)
        (best, most), *rest = for_text.most_common() or [("", 0)]
        second = rest[0][1] if rest else 0
        if most > max(second, ties):
            counts["preferences"] += 1
            counts["contested"] += second > 0
            task = found[0].task
            names = sorted({vote.annotator for vote in found if vote.annotator and vote.preferred == best})
            labels.append(Label(record_id, best, task.b if best == task.a else task.a, most / (most + second), tuple(names)))
        elif most or ties:
            counts["ties"] += 1
        else:
            counts["skipped" if any(vote.answer == "skipped" for vote in found) else "not answered"] += 1
    return Counted(labels, counts)
