"""Reads rows through resolution, adapter and ``parse_row``, and compares the records with the truth about the rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import yaml
from hypothesis import settings
from hypothesis import strategies as st

from dora_core.config.adapter import Adapter
from dora_core.data.adapter.canonical import CanonicalRow
from dora_core.data.adapter.driver import RowAdapter
from dora_core.data.adapter.resolve import Resolved, resolve
from dora_core.data.problems import Problem
from dora_core.data.records import Record, Rules, parse_row
from tests.dora_core.data.cases import Case, Truth

WORDS = st.text(alphabet="abcdefgh ÄÖé水🧥.,?!'\"\n", min_size=1, max_size=40).map(str.strip).filter(bool)
NUMBERS = st.integers(-5, 5) | st.floats(-5, 5, allow_nan=False).map(lambda x: round(x, 3))
few = settings(max_examples=60, deadline=None)


@dataclass(frozen=True)
class Read:
    """What came of an input: records and problems by position."""

    resolved: Resolved
    rows: dict[int, list[CanonicalRow]]
    problems: dict[int, list[Problem]]
    notes: Counter[str]


def read_rows(rows: list[Any], keys: dict[str, Any] | None = None, *, columns: list[str] | None = None, golden: bool = False) -> Read:
    adapter = Adapter.model_validate(keys or {})
    columns = columns or list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))
    resolved = resolve(adapter, columns, [row for row in rows[:64] if isinstance(row, dict)], golden=golden)
    reader = RowAdapter(resolved.adapter, columns)
    found: dict[int, list[CanonicalRow]] = {}
    problems: dict[int, list[Problem]] = {}
    for index, item in reader.rows(enumerate(rows)):
        if isinstance(item, CanonicalRow):
            found.setdefault(index, []).append(item)
        else:
            assert item, "an empty list of problems says nothing"
            problems.setdefault(index, []).extend(item)
    return Read(resolved, found, problems, reader.notes)


def record_of(row: CanonicalRow) -> Record:
    """The record of a canonical row; unpaired rows as samples, whose label is beside the record."""
    forms = {"unpaired": "sample"}
    fields = {
        key: value
        for key, value in row.fields.items()
        if key not in ("label", "source", "split", "weight", "extra", "tools", "label_probability")
    }
    record = parse_row(fields, forms.get(row.form, row.form), Rules())  # type: ignore[arg-type]
    assert isinstance(record, Record), record
    return record


def says(row: CanonicalRow) -> Truth:
    """What a canonical row says, in the words of a truth."""
    record = record_of(row)
    rewards = [1.0 if row.fields["label"] else 0.0] if row.form == "unpaired" else record.rewards
    answers = dict(zip(record.responses, rewards, strict=True))
    sources = {text: source for text, source in zip(record.responses, record.sources, strict=True) if source is not None}
    return Truth(record.prompt, answers, sources or None, row.fields.get("split"), row.fields.get("task"))


def assert_same(found: Truth, wanted: Truth) -> None:
    """Same prompt, same responses, same order of every two of them, and whatever else the truth says."""
    assert found.prompt == wanted.prompt
    assert found.answers.keys() == wanted.answers.keys()
    for one in wanted.answers:
        for other in wanted.answers:
            assert order(found.answers[one], found.answers[other]) == order(wanted.answers[one], wanted.answers[other]), (one, other)
    if wanted.sources is not None:
        assert found.sources == wanted.sources
    if wanted.split is not None:
        assert found.split == wanted.split
    if wanted.task is not None:
        assert found.task == wanted.task


def order(one: float | None, other: float | None) -> int | None:
    return None if one is None or other is None else (one > other) - (one < other)


def assert_case(case: Case) -> Read:
    read = read_rows(case.rows, case.adapter, golden=case.golden)
    assert read.resolved.preset == case.preset
    for index in range(len(case.rows)):
        wanted = case.truth.get(index)
        if isinstance(wanted, Truth):
            assert index not in read.problems, read.problems[index]
            (row,) = read.rows[index]
            assert_same(says(row), wanted)
        else:
            assert index not in read.rows, f"row {index} became {read.rows[index]}"
            reasons = {str(problem.reason) for problem in read.problems.get(index, [])}
            assert (wanted in reasons) if wanted else not reasons, (index, wanted, read.problems.get(index))
    return read


def one(rows: list[Any], keys: dict[str, Any] | None = None, **options: Any) -> CanonicalRow:
    """The only canonical row of an input without problems."""
    read = read_rows(rows, keys, **options)
    assert not read.problems, read.problems
    ((row,),) = read.rows.values()
    return row


def assert_expansion(case: Case) -> None:
    """The resolved keys, written out in full, read the same without a preset."""
    resolved = assert_case(case).resolved
    written = yaml.safe_load(resolved.text)
    assert Adapter.model_validate({**written, "preset": "none"}) == resolved.adapter
    assert_case(Case(case.name, case.rows, case.truth, None, {**written, "preset": "none"}, case.golden))


def assert_named(case: Case) -> None:
    """The preset given by name reads the same as the preset that is recognised."""
    found = assert_case(case).resolved
    named = assert_case(Case(case.name, case.rows, case.truth, case.preset, {**case.adapter, "preset": case.preset}, case.golden)).resolved
    assert named.adapter == found.adapter and found.recognised and not named.recognised
