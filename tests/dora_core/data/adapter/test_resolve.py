"""Resolution: recognition, conflicts with what the user wrote, missing columns; everything in one error."""

from __future__ import annotations

from typing import Any

import pytest

from dora_core.config.adapter import Adapter
from dora_core.data.adapter.driver import RowAdapter
from dora_core.data.adapter.resolve import resolve
from dora_core.errors import ConfigError, DataError, DoraError
from tests.dora_core.data.adapter.reading import one, read_rows, says
from tests.dora_core.data.cases import CASES

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


def resolved(rows, keys=None, **options):
    return resolve(Adapter.model_validate(keys or {}), list(dict.fromkeys(k for row in rows for k in row)), rows, **options)


def refused(rows, keys=None, **options) -> DoraError:
    with pytest.raises(DoraError) as caught:
        resolved(rows, keys, **options)
    return caught.value


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("shp", {"prompt": "history", "chosen": "human_ref_A", "rejected": "human_ref_B"}),
        ("webgpt", {"prompt": "question", "chosen": "answer_0", "rejected": "answer_1"}),
        ("arena", {"chosen": "conversation_a", "rejected": "conversation_b", "chosen_source": "model_a"}),
        ("alpaca_farm", {"prompt": "instruction", "chosen": "output_1", "rejected": "output_2"}),
        ("halos", {"chosen": "output_A", "rejected": "output_B"}),
        ("unified_feedback", {"chosen": "conv_A", "rejected": "conv_B"}),
        ("ultrafeedback", {"prompt": "instruction", "responses": "completions", "sources": "models"}),
        ("summarize", {"prompt": "info", "responses": "summaries"}),
        ("helpsteer2", {"responses": "response", "rewards": "helpfulness"}),
        ("kto", {"responses": "completion", "rewards": "label"}),
        ("oasst", {"prompt": "parent_id", "responses": "text", "ranks": "rank"}),
    ],
)
def test_mapping_that_misreads_a_known_schema_is_refused_with_the_preset(name, columns):
    case = CASES[name]()
    error = refused(case.rows, {"columns": columns})
    assert f"preset: {case.preset}" in error.hint and "preset: none" in error.hint


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("orca", {"prompt": "question"}),
        ("sharegpt", {"prompt": "conversations"}),
        ("ms_swift", {"chosen": "messages", "rejected": "rejected_response"}),
        ("argilla", {"chosen_source": "chosen-model", "rejected_source": "rejected-model"}),
        ("distilabel", {"prompt": "instruction", "responses": "generations", "rewards": "ratings", "sources": "generation_models"}),
        ("simpo", {"responses": "all_generated_responses", "rewards": "all_rm_scores"}),
        ("reward_bench", {"chosen_source": "chosen_model", "rejected_source": "rejected_model", "task": "subset"}),
        ("axolotl_icr", {"prompt": "input"}),
    ],
)
def test_mapping_that_agrees_with_a_known_schema_takes_the_rest_from_it(name, columns):
    case = CASES[name]()
    found = resolved(case.rows, {"columns": columns})
    assert found.preset == case.preset and found.adapter == resolved(case.rows).adapter


def test_several_presets_are_refused_with_their_names():
    row = {**CASES["stack_exchange"]().rows[0], **CASES["ms_swift"]().rows[0]}
    error = refused([row])
    assert "fits several presets: ms_swift, stack_exchange" in error.message and "preset: none" in error.hint


def test_schema_that_fits_nothing_names_columns_and_presets():
    error = refused([{"text": "x"}])
    assert (
        "fits no preset" in error.message
        and "columns there: text" in error.hint
        and "ultrafeedback" in error.hint
        and "sft_messages" not in error.hint
    )


def test_missing_columns_and_dead_paths_are_named_together():
    error = refused([{"q": "x", "a": {"txt": "y"}}], {"shape": "pair", "columns": {"prompt": "p", "chosen": "a.text", "rejected": "r"}})
    assert all(
        part in error.message
        for part in ("`columns.prompt`: no column 'p'", "a has no key text; keys there: txt", "`columns.rejected`: no column 'r'")
    )


def test_field_of_another_shape_is_refused():
    error = refused([PAIR], {"shape": "pair", "columns": {"responses": "chosen"}})
    assert "`columns.responses` would be ignored" in error.message


def test_label_of_another_shape_is_a_typed_error():
    error = refused([{"prompt": "q", "responses": ["a", "b"], "w": "a"}], {"label": {"column": "w", "a": "a", "b": "b"}})
    assert "shape list cannot have a label of the kind winner" in error.message
    error = refused([{**PAIR, "responses": ["a", "b"], "w": 0}], {"label": {"column": "w", "index_base": 0}})
    assert "pairs and lists" in error.message


def test_label_is_asked_for_with_an_example():
    error = refused([{"prompt": "q", "a": "x", "b": "y"}], {"shape": "ab"})
    assert "needs `label`" in error.message and "winner" in error.hint


@pytest.mark.parametrize(
    ("keys", "golden"), [({"preset": "alpaca"}, False), ({"preset": "hh"}, True), ({"shape": "single"}, False), ({"shape": "pair"}, True)]
)
def test_trusted_and_preference_data_are_told_apart(keys, golden):
    error = refused([{**PAIR, "response": "r", "instruction": "i", "output": "o"}], keys, golden=golden)
    assert isinstance(error, ConfigError | DataError)


def test_unknown_preset_names_the_nearest():
    assert "did you mean 'ultrafeedback'" in refused([PAIR], {"preset": "ultrafeedbak"}).hint


def test_preset_by_name_that_does_not_fit_says_why():
    error = refused([PAIR], {"preset": "nectar"})
    assert "no column answers" in error.message and "columns there: prompt, chosen, rejected" in error.hint


def test_canonical_files_stay_what_they_were():
    for row in (
        {"prompt": "q", "responses": ["a", "b"], "rewards": [1.0, None], "sources": ["x", None]},
        {**PAIR, "chosen_source": "x", "rejected_source": "y", "id": 3},
    ):
        found = resolved([row])
        assert found.left.used == tuple(row) and not found.left.unnamed and found.names_sources


def test_mapped_column_that_ragged_rows_lack_is_an_error_still():
    assert "no column 'nope'" in refused([PAIR], {"columns": {"task": "nope"}}, ragged=True).message


def test_override_of_a_preset_replaces_its_label():
    case = CASES["helpsteer2"]()
    keys = {"preset": "helpsteer2", "label": {"scores": ["helpfulness", "verbosity"], "weights": [1, -0.5]}}
    read = read_rows(case.rows, keys)
    assert sorted(says(read.rows[0][0]).answers.values()) == [0.0, 3.0] and "verbosity" not in read.resolved.left.carried


@pytest.mark.parametrize(
    ("name", "field", "place"),
    [
        ("ultrafeedback", "responses[2]", "completions[2].response"),
        ("orca", "prompt", "question"),
        ("binarized", "responses[1]", "rejected"),
        ("argilla", "sources[0]", "chosen-model"),
        ("shp", "chosen", "human_ref_A or human_ref_B"),
        ("webgpt", "responses[0]", "answer_0"),
        ("helpsteer2", "responses[1]", "response"),
        ("kto", "response", "completion"),
    ],
)
def test_fields_of_records_are_named_as_in_the_file(name, field, place):
    case = CASES[name]()
    assert RowAdapter(resolved(case.rows).adapter, case.columns).place_of(field) == place


# ------------------------------------------------------------------------------------------------- columns that need a decision


@pytest.mark.parametrize("column", ["system", "system_prompt", "history", "tools", "sys_prompt", "input", "document", "context"])
def test_unnamed_context_needs_a_decision(column):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", column: "something"}
    with pytest.raises(DataError) as caught:
        read_rows([row], {"preset": "none"})
    assert f"'{column}'" in caught.value.hint and f"ignore: [{column}]" in caught.value.hint
    assert one([row], {"preset": "none", "ignore": [column]} if column != "tools" else {"preset": "none", "ignore": ["tools"]})


@pytest.mark.parametrize(
    "column", ["score", "chosen_score", "rating", "reward_A", "rm_scores", "margin", "weight", "rank", "winner", "label", "preference"]
)
def test_unnamed_scores_and_labels_need_a_decision(column):
    with pytest.raises(DataError, match="need a decision") as caught:
        read_rows([{"prompt": "q", "chosen": "a", "rejected": "b", column: 2.0}])
    assert f"ignore: [{column}]" in caught.value.hint


def test_column_that_holds_split_names_needs_a_decision():
    rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "part": ("train", "test")[i % 2]} for i in range(4)]
    with pytest.raises(DataError, match="need a decision") as caught:
        read_rows(rows)
    assert "columns: {split: part}" in caught.value.hint


def test_column_of_a_partition_is_a_column_like_any_other():
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b", "source": "gpt-4"}]
    with pytest.raises(DataError, match="need a decision") as caught:
        read_rows(rows)
    assert "columns: {source: source}" in caught.value.hint
    assert says(one(rows, {"columns": {"source": "source"}})).sources == {"a": "gpt-4", "b": "gpt-4"}


def hint_of(**row: Any) -> str:
    with pytest.raises(DataError) as caught:
        resolve(Adapter(), list(row), [row])
    return caught.value.hint


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            {"input": "q q", "accepted": "a a", "rejected": "b b"},
            "`shape: pair` with `columns: {prompt: input, chosen: accepted, rejected: rejected}`",
        ),
        ({"context": "q q", "answer_w": "a a", "answer_l": "b b"}, "`columns: {prompt: context, chosen: answer_w, rejected: answer_l}`"),
        (
            {"query": "q q", "losing_reply": "a a", "winning_reply": "b b"},
            "`columns: {prompt: query, chosen: winning_reply, rejected: losing_reply}`",
        ),
        (
            {"instruction": "q q", "candidates": [{"model": "m", "text": "a a"}, {"model": "n", "text": "b b"}]},
            '`columns: {prompt: instruction, responses: "candidates[].text"}` and `label: {scores: […]}`',
        ),
        ({"prompt": "q q", "chosen": "a a", "rejected": "b b", "rejected_model": "m"}, "`columns: {rejected_source: rejected_model}`"),
    ],
)
def test_the_hint_names_the_columns_that_look_like_responses(row: dict[str, Any], line: str) -> None:
    assert line in hint_of(**row)


def test_steps_before_the_responses_need_a_decision() -> None:
    """xinlai/Math-Step-DPO-10K: chosen and rejected are the next step after `initial_reason_steps`, not whole responses."""
    pair = {"prompt": "q q", "chosen": "Step 2 a", "rejected": "Step 2 b", "initial_reason_steps": "Step 1 x", "answer": "4"}
    hint = hint_of(**pair, full_chosen="Step 2 a, 3 c", full_rejected="Step 2 b, 3 d")
    assert "'initial_reason_steps' looks like the beginning of the responses: write `context: {input: initial_reason_steps}`" in hint
    assert "'full_chosen' looks like a further response" in hint and "ignore: [full_rejected]" in hint


def test_messages_of_a_dialect_of_their_own_are_read_where_it_is_named():
    def said(role, text):
        return {"role": role, "parts": [{"text": text}]}

    row = {
        "contents": [said("user", "q")],
        "completions": [{"score": 0.0, "completion": said("model", "a")}, {"score": 1.0, "completion": said("model", "b")}],
    }
    keys = {
        "shape": "list",
        "columns": {"prompt": "contents", "responses": "completions[].completion"},
        "label": {"scores": ["completions[].score"]},
    }
    with pytest.raises(DataError, match=r"write `messages: \{role: role, content: parts\}`"):
        read_rows([row], keys)
    found = one([row], {**keys, "messages": {"role": "role", "content": "parts"}}).fields
    assert found["prompt"] == [{"role": "user", "content": "q"}] and dict(zip(found["responses"], found["rewards"], strict=True)) == {
        "a": 0.0,
        "b": 1.0,
    }


def test_a_preset_is_not_taken_for_another_schema_of_the_same_columns():
    row = {"prompt": "q", "answers": [{"answer": "a", "is_preferred": False}, {"answer": "b", "is_preferred": True}]}
    with pytest.raises(DataError, match="fits no preset") as caught:
        read_rows([row])
    assert '`label: {scores: ["answers[].is_preferred"]}`' in caught.value.hint
