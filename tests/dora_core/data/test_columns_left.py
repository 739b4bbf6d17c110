"""What becomes of every column."""

from __future__ import annotations

import pytest
import yaml

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
        ("winner", "model_a", "a winner", "shape: ab with columns: {a: chosen, b: rejected} and label: {column: winner, a: […]"),
        ("weight", 0.5, "a weight", "columns: {weight: weight}"),
        ("margin", 2.5, "a margin", "carry: [margin]"),
        ("source", "gpt-4", "a source", "columns: {source: source}"),
        ("chosen_model", "gpt-4", "a source", "columns: {chosen_source: chosen_model}"),
        ("audio_url", "a.wav", "media", "ignore: [audio_url]"),
        ("img", "a.png", "media", "ignore: [img]"),
        ("is_tie", True, "a winner", "leave_out: {is_tie: […]}"),
        ("flipped", True, "a winner", "label: {column: flipped, a: […], b: […], tie: […]}"),
        ("status", "tie", "a winner", "leave_out: {status: […]}"),
        ("status", "discarded", "a mark of rows that do not count", "leave_out: {status: [discarded]}"),
        ("is_deleted", True, "a mark of rows that do not count", "leave_out: {is_deleted: [true]}"),
        ("is_valid", "False", "a mark of rows that do not count", "leave_out: {is_valid: ['False']}"),
        ("winner_model_b", 1, "a winner", "label: {column: winner_model_b, a: […]"),
        ("rejected2", "c", "a further response", "carry: [rejected2]"),
        ("question", "What?", "a prompt", "columns: {prompt: question}"),
        ("rank", 1, "a rank", "carry: [rank]"),
        ("rank", [1, 0], "a rank", "label: {ranks: rank, base: 0}"),
        ("schema", "CREATE TABLE t (a int)", "a context", "context: {input: schema}"),
        ("Prompt", "Another one.", "a prompt", "columns: {prompt: Prompt}"),
        ("Chosen", "Another one.", "a second 'chosen'", "ignore: [Chosen]"),
        ("rejected_responses", ["b", "c"], "a further response", "ignore: [rejected_responses]"),
        ("annotations", [{"rating": 4, "by": "x"}], "a score", 'label: {scores: ["annotations[].rating"]}'),
        (
            "context",
            [{"speaker": "A", "text": "t"}],
            "a context",
            "columns: {prompt: context} with messages: {role: speaker, content: text}",
        ),
        ("rm.score", 1, None, ""),
        ("quality_score", 1, "a score", "carry: [quality_score]"),
        ("quality_score", [4, 1], "a score", "label: {scores: [quality_score]}"),
        ("x", "model_b", "a winner", "label: {column: x, a: […], b: […], tie: […]}"),
        ("x", "You are a pirate.", "a system prompt", "context: {system: x}"),
        ("x", [{"role": "user", "content": "Another one."}], "messages", "columns: {prompt: x}"),
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


@pytest.mark.parametrize(
    ("one", "other", "line"),
    [
        ("helpfulness_chosen", "helpfulness_rejected", "label: {scores: [{chosen: helpfulness_chosen, rejected: helpfulness_rejected}]}"),
        ("chosen_quality", "rejected_quality", "label: {scores: [{chosen: chosen_quality, rejected: rejected_quality}]}"),
        ("score_A", "score_B", "label: {scores: [{a: score_A, b: score_B}]}"),
        ("winner_model_a", "winner_model_b", "label: {scores: [{a: winner_model_a, b: winner_model_b}]}"),
    ],
)
def test_numbers_of_each_response_are_scores_with_one_line_for_both(one, other, line):
    decisions = left({one: 1, other: 4}).decisions
    assert [decision.column for decision in decisions] == [one, other] and all(decision.lines[0] == line for decision in decisions)
    assert Adapter.model_validate({"shape": "ab" if "{a:" in line else "pair", **yaml.safe_load(line)})


def test_models_of_each_response_have_one_line_for_both():
    (decision, _) = left({"chosen_model": "x", "rejected_model": "y"}).decisions
    assert decision.lines[0] == "columns: {chosen_source: chosen_model, rejected_source: rejected_model}"


@pytest.mark.parametrize("column", ["tokens_{}", "{}_length", "created_at_utc_{}", "id_{}"])
def test_sizes_and_times_of_each_response_are_no_scores(column):
    assert not left({column.format("chosen"): 1, column.format("rejected"): 2}).decisions


def test_column_that_repeats_a_text_of_the_row_is_carried():
    assert left({"question": "q"}).unnamed == ("question",)


def test_column_without_a_name_is_left_out():
    found = left({"": 0, "Unnamed: 0": 0})
    assert (found.ignored, found.unnamed) == (("",), ("Unnamed: 0",))


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("tools", [{"name": "f"}], "ignore: [in.tools]"),
        ("system", "Be kind.", "context: {system: in.system}"),
        ("images", ["a.png"], "ignore: [in.images]"),
    ],
)
def test_part_beside_a_nested_prompt_needs_a_decision(key, value, line):
    row = {"in": {"messages": [{"role": "user", "content": "q"}], key: value, "n": 1}, "chosen": "a", "rejected": "b"}
    keys = {"shape": "pair", "columns": {"prompt": "in.messages"}}
    (decision,) = columns_left(Adapter.model_validate(keys), list(row), [row]).decisions
    assert decision.column == f"in.{key}" and any(line in one for one in decision.lines)
    assert not columns_left(Adapter.model_validate({**keys, "ignore": [f"in.{key}"]}), list(row), [row]).decisions


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


def test_parts_of_single_responses_other_than_media_need_no_decision():
    row = {"prompt": "q", "done": [{"text": "a", "system_prompt": "s", "images": ["x"]}, {"text": "b", "system_prompt": "t", "images": []}]}
    adapter = Adapter.model_validate({"shape": "list", "columns": {"responses": "done[].text"}})
    assert [decision.column for decision in columns_left(adapter, list(row), [row]).decisions] == ["done[].images"]


def test_only_lines_that_can_read_the_values_are_offered():
    def lines(extra):
        (decision,) = left(extra).decisions
        return decision.lines

    assert lines({"models": ["gpt-4", "llama"]}) == ("carry: [models]", "ignore: [models]"), "a source per row is text"
    assert lines({"quality_score": 1}) == ("carry: [quality_score]", "ignore: [quality_score]"), "a score of two responses is two numbers"
    assert not any("input" in line for line in lines({"context": [{"role": "user", "content": "c"}]})), "messages are not joined to a text"


@pytest.mark.parametrize("column", ["is_deleted", "status", "is_valid"])
def test_marks_that_mark_nothing_are_carried(column):
    assert left({column: {"is_deleted": False, "status": "submitted", "is_valid": True}[column]}).unnamed == (column,)


def test_what_repeats_the_texts_of_a_row_in_other_words_of_structure_is_carried():
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert left({"conversations": talk, "Prompt": "q"}).unnamed == ("conversations", "Prompt")
    assert left({"conversations": [*talk, {"from": "gpt", "value": "z"}]}).decisions


@pytest.mark.parametrize(
    ("column", "value", "line"),
    [
        ("elo", [900, 1200], "label: {scores: [elo]}"),
        ("loss", [3.0, 1.0], "label: {scores: [loss], weights: [-1]}"),
        ("best_index", 0, "label: {column: best_index, index_base: 0}"),
        ("gold", 1, "label: {column: gold, index_base: 0 or 1}"),
    ],
)
def test_a_list_without_a_label_asks_for_columns_that_may_be_one(column, value, line):
    row = {"prompt": "q", "responses": ["a", "b"], "rewards": None, column: value}
    (decision,) = columns_left(Adapter.model_validate({"shape": "list"}), list(row), [row]).decisions
    assert (decision.column, line in decision.lines) == (column, True)
    labelled = {**row, "rewards": [1.0, 0.0]}
    assert not columns_left(Adapter.model_validate({"shape": "list"}), list(row), [labelled]).decisions, "the list has its label"


@pytest.mark.parametrize(("column", "value"), [("turn", 1), ("token_counts", [3, 4, 5]), ("seeds", ["x", "y"])])
def test_other_columns_beside_a_list_without_a_label_are_carried(column, value):
    row = {"prompt": "q", "responses": ["a", "b"], column: value}
    assert columns_left(Adapter.model_validate({"shape": "list"}), list(row), [row]).unnamed == (column,)
