"""What becomes of every column."""

from __future__ import annotations

import pytest

from dora_core.config.adapter import Adapter
from dora_core.data.columns_left import columns_left
from tests.dora_core.data.cases import all_cases

BASE = {"prompt": "q", "chosen": "a", "rejected": "b"}


def left(extra, keys=None):
    row = {**BASE, **extra}
    return columns_left(Adapter.model_validate({"shape": "pair", **(keys or {})}), list(row), [row, row])


@pytest.mark.parametrize("column", ["annotator", "created_at", "confidential", "worker", "lang", "url", "flagged_as_noise", "length"])
def test_harmless_columns_need_no_decision(column):
    assert left({column: "x"}).unnamed == (column,)


@pytest.mark.parametrize(
    ("column", "value", "looks", "line"),
    [
        ("system", "Be kind.", "a system prompt", "context: {system: system}"),
        ("tools", [{"name": "f"}], "tools", "messages: {tools: keep}"),
        ("images", [{"bytes": b"x"}], "media", "ignore: [images]"),
        ("winner", "model_a", "a winner", "label: {column: winner, …}"),
        ("weight", 0.5, "a weight", "columns: {weight: weight}"),
        ("margin", 2.5, "a margin", "carry: [margin]"),
        ("source", "gpt-4", "a source", "columns: {source: source}"),
        ("chosen_model", "gpt-4", "a source", "columns: {source: chosen_model}"),
        ("rank", 1, "a rank", "label: {ranks: rank, base: 1}"),
        ("rm.score", 1, None, ""),
        ("quality_score", 1, "a score", "label: {scores: [quality_score]}"),
        ("x", "model_b", "a winner", "label: {column: x, …}"),
        ("x", "You are a pirate.", "a system prompt", "context: {system: x}"),
        ("x", [{"role": "user", "content": "q"}], "messages", "columns: {prompt: x}"),
        ("x", {"bytes": None, "path": "a.png"}, "media", "ignore: [x]"),
    ],
)
def test_columns_that_may_say_how_to_read_a_row_need_a_decision(column, value, looks, line):
    found = left({column: value})
    if looks is None:
        assert found.unnamed == (column,)
        return
    (decision,) = found.decisions
    assert (decision.column, decision.looks_like) == (column, looks) and any(line in one for one in decision.lines)


@pytest.mark.parametrize("value", [None, "", [], {}])
def test_column_that_is_empty_everywhere_needs_no_decision(value):
    assert not left({"system": value}).decisions


@pytest.mark.parametrize(
    "keys", [{"ignore": ["system"]}, {"carry": ["system"]}, {"context": {"system": "system"}}, {"context": {"system": False}}]
)
def test_any_named_use_is_a_decision(keys):
    assert not left({"system": "x"}, keys).decisions


def test_unread_parts_of_a_used_struct_are_listed():
    row = {"prompt": "q", "done": [{"text": "a", "critique": "c", "score": 1}, {"text": "b", "critique": None, "score": 0}]}
    adapter = Adapter.model_validate({"shape": "list", "columns": {"responses": "done[].text", "rewards": "done[].score"}})
    assert columns_left(adapter, list(row), [row]).unread == ("done[].critique",)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in all_cases()])
def test_every_column_of_every_schema_is_accounted_for(case):
    from dora_core.data.adapter.resolve import resolve

    found = resolve(Adapter.model_validate(case.adapter), case.columns, case.rows, golden=case.golden).left
    named = [*found.used, *found.carried, *found.ignored, *found.unnamed]
    assert sorted(named) == sorted(case.columns) and not found.decisions
