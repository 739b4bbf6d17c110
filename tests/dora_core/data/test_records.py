"""Validation of rows, prompt hashes, splits and folds, against values written out by hand."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dora_core.data.adapter.canonical import CanonicalRow
from dora_core.data.problems import Problem, Reason
from dora_core.data.records import (
    GOLDEN_SCHEMA,
    RECORDS_SCHEMA,
    Record,
    Rules,
    fold_of,
    golden_table,
    hash_prompt,
    is_golden_source,
    is_held_out,
    parse_canonical,
    parse_row,
    records_table,
    split_of,
    with_tools,
)

USER = {"role": "user", "content": "hi"}
LISTWISE = {"id": "a", "prompt": "hi", "responses": ["x", "y"], "rewards": [1.5, None], "sources": ["human", "m"]}
PAIRWISE = {"prompt": "hi", "chosen": "x", "rejected": "y"}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def record(row, form="listwise", **rules) -> Record:
    parsed = parse_row(row, form, Rules(**rules))
    assert isinstance(parsed, Record), parsed
    return parsed


def problems(row, form="listwise", **rules) -> set[tuple[str, str]]:
    parsed = parse_row(row, form, Rules(**rules))
    assert isinstance(parsed, list), parsed
    return {(p.field, str(p.reason)) for p in parsed}


# ------------------------------------------------------------------------------------------------------- good rows


def test_listwise_row_becomes_a_record():
    r = record(LISTWISE)
    assert (r.record_id, r.prompt, r.responses) == ("a", [USER], ["x", "y"])
    assert (r.rewards, r.sources, r.reward_kind) == ([1.5, None], ["human", "m"], "reward")


def test_ranks_are_negated_and_used_only_where_rewards_are_absent():
    row = LISTWISE | {"ranks": [2, 1]}
    assert record(row).rewards == [1.5, None]
    ranked = record(row | {"rewards": None})
    assert (ranked.rewards, ranked.reward_kind) == ([-2.0, -1.0], "rank")


def test_no_measured_reward_is_kind_none():
    assert record(LISTWISE | {"rewards": None}).reward_kind == "none"
    assert record(LISTWISE | {"rewards": [None, None]}).reward_kind == "none"


def test_pairwise_row_gets_rewards_one_and_zero_and_its_sources():
    r = record(PAIRWISE | {"chosen_source": "human"}, "pairwise", default_source="m")
    assert (r.responses, r.rewards, r.sources, r.reward_kind) == (["x", "y"], [1.0, 0.0], ["human", "m"], "preference")


LEAD = [USER, assistant("hello"), {"role": "user", "content": "more"}]


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"chosen": [*LEAD, assistant("x")], "rejected": [*LEAD, assistant("y")]}, id="TRL implicit prompt"),
        pytest.param({"prompt": LEAD, "chosen": [assistant("x")], "rejected": [assistant("y")]}, id="TRL explicit prompt"),
        pytest.param({"prompt": LEAD, "chosen": [*LEAD, assistant("x")], "rejected": [*LEAD, assistant("y")]}, id="both"),
        pytest.param({"prompt": "more", "chosen": [*LEAD, assistant("x")], "rejected": [*LEAD, assistant("y")]}, id="prompt = last turn"),
        pytest.param(
            {
                "chosen": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: more\n\nAssistant: x",
                "rejected": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: more\n\nAssistant: y",
            },
            id="HH transcripts",
        ),
        pytest.param(
            {"prompt": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: more\n\nAssistant:", "chosen": "x", "rejected": "y"},
            id="HH prompt column",
        ),
    ],
)
def test_every_conversation_form_gives_the_same_record(row):
    r = record(row, "pairwise")
    assert (r.prompt, r.responses) == (LEAD, ["x", "y"])


def test_a_task_is_carried_and_changes_the_content_only_where_it_is_given():
    without, null, blank = (record(row) for row in (LISTWISE, LISTWISE | {"task": None}, LISTWISE | {"task": ""}))
    assert without == null == blank and without.task is None
    assert without.content == json.dumps([[USER], ["x", "y"], [1.5, None], ["human", "m"], "reward"], sort_keys=True, separators=(",", ":"))
    math = record(LISTWISE | {"task": "math"})
    assert math.task == "math" and math.content != without.content
    assert record(PAIRWISE | {"task": "code"}, "pairwise").task == "code"
    assert records_table([without, math], 0.1)["task"].to_pylist() == [None, "math"]


def test_golden_row():
    r = record({"id": 7, "prompt": "hi", "response": "x"}, "golden")
    assert (r.record_id, r.responses) == ("7", ["x"])


def test_a_row_without_id_gets_a_digest_of_its_content():
    a, b = record(LISTWISE | {"id": None}), record(LISTWISE | {"id": None, "rewards": [1.5, 0.0]})
    assert len(a.record_id) == 32
    assert a.record_id != b.record_id
    duplicate = parse_row(LISTWISE | {"id": None}, "listwise", Rules(), {a.record_id})
    assert [p.reason for p in duplicate] == [Reason.DUPLICATE_ID]


# ------------------------------------------------------------------------------------------------------- bad rows


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"prompt": " \n"}, {("prompt", "empty_prompt")}),
        ({"prompt": None}, {("prompt", "empty_prompt")}),
        ({"prompt": []}, {("prompt", "empty_prompt")}),
        ({"prompt": 3}, {("prompt", "wrong_type")}),
        ({"prompt": [{"role": "gpt", "content": "hi"}]}, {("prompt[0].role", "wrong_type")}),
        ({"prompt": [USER, assistant("hello")]}, {("prompt", "wrong_type")}),
        ({"responses": ["x", ""]}, {("responses[1]", "empty_response")}),
        ({"responses": ["x", None]}, {("responses[1]", "missing_response")}),
        ({"responses": None}, {("responses", "missing_response")}),
        ({"responses": "x"}, {("responses", "wrong_type")}),
        ({"responses": ["x"], "rewards": [1], "sources": ["m"]}, {("responses", "too_few_responses")}),
        ({"responses": ["x"] * 17, "rewards": None, "sources": None}, {("responses", "too_many_responses")}),
        ({"responses": ["x", "a" * 1_000_000]}, {("responses[1]", "text_too_long")}),
        ({"responses": ["x", "\ud800"]}, {("responses[1]", "lone_surrogate")}),
        ({"prompt": "\udfff"}, {("prompt[0].content", "lone_surrogate")}),
        ({"id": "\ud83d"}, {("id", "lone_surrogate")}),
        ({"id": 1.5}, {("id", "wrong_type")}),
        ({"rewards": [1.0]}, {("rewards", "length_mismatch")}),
        ({"rewards": [1, float("nan")]}, {("rewards[1]", "nonfinite_reward")}),
        ({"rewards": [float("-inf"), 10**400]}, {("rewards[0]", "nonfinite_reward"), ("rewards[1]", "nonfinite_reward")}),
        ({"rewards": [True, "1"]}, {("rewards[0]", "wrong_type"), ("rewards[1]", "wrong_type")}),
        ({"sources": ["m"]}, {("sources", "length_mismatch")}),
        ({"sources": ["m", "a\nb"]}, {("sources[1]", "unknown_source")}),
        ({"task": 3}, {("task", "wrong_type")}),
        ({"task": ["math"]}, {("task", "wrong_type")}),
        ({"task": "a\nb"}, {("task", "wrong_type")}),
        ({"task": "\ud800"}, {("task", "wrong_type")}),
    ],
)
def test_each_problem_has_its_reason(change, expected):
    assert problems(LISTWISE | change) == expected


def test_all_problems_of_a_row_are_found():
    row = {"id": [], "prompt": "", "responses": ["", None], "rewards": [float("inf")], "sources": ["m", "other"]}
    assert problems(row, allowed_sources=frozenset({"m"})) == {
        ("id", "wrong_type"),
        ("prompt", "empty_prompt"),
        ("responses[0]", "empty_response"),
        ("responses[1]", "missing_response"),
        ("rewards", "length_mismatch"),
        ("rewards[0]", "nonfinite_reward"),
        ("sources[1]", "unknown_source"),
    }


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (PAIRWISE | {"rejected": "x"}, {("rejected", "identical_pair")}),
        (PAIRWISE | {"rejected": " x\n"}, {("rejected", "identical_pair")}),
        (PAIRWISE | {"rejected": float("nan")}, {("rejected", "wrong_type")}),
        ({"chosen": "x", "rejected": "y"}, {("prompt", "empty_prompt")}),
        (PAIRWISE | {"rejected": None}, {("rejected", "missing_response")}),
        ({"chosen": [USER, assistant("x")], "rejected": [*LEAD, assistant("y")]}, {("prompt", "prompt_mismatch")}),
        ({"prompt": "other", "chosen": [USER, assistant("x")], "rejected": [USER, assistant("y")]}, {("prompt", "prompt_mismatch")}),
        ({"chosen": [USER, assistant("x")], "rejected": [USER]}, {("rejected", "wrong_type")}),
        ({"chosen": [USER, assistant("x")], "rejected": [USER, assistant(" ")]}, {("rejected", "empty_response")}),
    ],
)
def test_pairwise_problems(row, expected):
    assert problems(row, "pairwise") == expected


def test_details_never_quote_a_text():
    secret = "my secret text " * 100
    row = {"id": "a", "prompt": [{"role": secret, "content": secret}], "responses": [secret, {"x": secret}], "sources": [secret, secret]}
    found = parse_row(row, "listwise", Rules(max_text_bytes=300, allowed_sources=frozenset()))
    assert found
    assert all(len(p.detail) <= 120 and secret not in p.detail for p in found)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=6) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["id", "prompt", "responses", "rewards", "ranks", "sources", "task", "chosen", "rejected", "chosen_source", "rejected_source"]
FIELDS += ["response"]
VALID = [LISTWISE, PAIRWISE, {"prompt": [USER], "response": [assistant("x")]}]
ROWS = st.builds(lambda good, odd: good | odd, st.sampled_from(VALID), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3)) | JSON


@given(row=ROWS, form=st.sampled_from(["listwise", "pairwise", "golden"]))
@settings(max_examples=400)
def test_whatever_a_row_holds_it_is_a_writable_record_or_has_reasons(row, form):
    parsed = parse_row(row, form, Rules())
    if isinstance(parsed, Record):
        table = golden_table([parsed], 0.1) if form == "golden" else records_table([parsed], 0.1)
        table.validate(full=True)
    else:
        assert parsed
        assert all(isinstance(p, Problem) and isinstance(p.reason, Reason) and p.detail.isascii() for p in parsed)


# ------------------------------------------------------------------------------------------------------- hashes


def test_prompt_hash_is_the_documented_one():
    text = json.dumps([{"content": "hi", "role": "user"}], separators=(",", ":"))
    assert text == '[{"content":"hi","role":"user"}]'
    assert hash_prompt([USER]) == int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)


def test_splits_and_folds_have_the_asked_sizes_and_are_independent():
    hashes = np.random.default_rng(0).integers(0, 2**64, size=60_000, dtype=np.uint64)
    is_eval, folds = split_of(hashes, 0.2) == "eval", fold_of(hashes, 3)
    assert is_eval.mean() == pytest.approx(0.2, abs=0.01)  # 6 standard errors
    for fold in range(3):
        assert (folds == fold).mean() == pytest.approx(1 / 3, abs=0.01)
        assert is_eval[folds == fold].mean() == pytest.approx(0.2, abs=0.015)


def test_a_larger_holdout_only_adds_prompts():
    hashes = np.arange(10_000, dtype=np.uint64)
    small, large = split_of(hashes, 0.1) == "eval", split_of(hashes, 0.3) == "eval"
    assert not (small & ~large).any()


def test_consecutive_hashes_spread_over_folds():
    assert np.bincount(fold_of(np.arange(9000, dtype=np.uint64), 9)).min() > 850


def test_golden_patterns():
    assert is_golden_source("human", ["human"])
    assert is_golden_source("human-esnli", ["expert", "human*"])
    assert not is_golden_source("human-esnli", ["human"])
    assert not is_golden_source(None, ["*"])


def test_tables_have_the_published_schemas():
    r = record(LISTWISE)
    table = records_table([r], 0.1)
    assert table.schema.equals(RECORDS_SCHEMA)
    assert table["prompt_hash"].to_pylist() == [hash_prompt([USER])]
    assert table["rewards"].to_pylist() == [[1.5, None]]
    assert golden_table([record({"prompt": "hi", "response": "x"}, "golden")], 0.1).schema.equals(GOLDEN_SCHEMA)
    assert records_table([], 0.1).num_rows == 0


def canonical(form="listwise", **fields):
    rows = {"listwise": {"responses": ["x", "y"], "rewards": [1.0, 0.0]}, "unpaired": {"response": "x", "label": True, "source": "m"}}
    return parse_canonical(CanonicalRow(form, {"prompt": [USER], **rows[form], **fields}), Rules())


def test_a_canonical_row_is_the_record_of_the_plain_row_and_what_is_beside_it_changes_its_id():
    plain = canonical()
    assert plain == record({"prompt": "hi", "responses": ["x", "y"], "rewards": [1.0, 0.0]}), "ids of old rows stay"
    beside = [canonical(weight=0.5), canonical(split="eval"), canonical(extra='{"a":1}'), canonical(label_probability=0.75)]
    assert len({r.record_id for r in [plain, *beside]}) == 5 and {r.prompt_hash for r in beside} == {plain.prompt_hash}
    assert (beside[0].weight, beside[1].split, beside[2].extra) == (0.5, "eval", '{"a":1}')
    assert beside[3].label_probability == 0.75 and plain.label_probability is None


def test_final_texts_are_not_read_a_second_time():
    text = "\n\nHuman: hi\n\nAssistant: x"
    assert canonical(responses=[text, "y"]).responses[0] == text


def test_an_unpaired_row_has_one_response_and_its_label_as_reward():
    good, bad = canonical("unpaired"), canonical("unpaired", label=False)
    assert (good.reward_kind, good.responses, good.rewards, good.sources) == ("label", ["x"], [1.0], ["m"]) and bad.rewards == [0.0]


def test_tools_are_kept_in_the_messages_and_in_the_schema_that_has_them():
    call = {"role": "assistant", "content": "", "tool_calls": '[{"id": "c1"}]'}
    answer = {"role": "tool", "content": "42", "tool_call_id": "c1"}
    r = canonical(prompt=[USER, call, answer], tools='[{"name": "f"}]')
    assert [json.loads(m["extra"]) for m in r.prompt] == [
        {"tools": [{"name": "f"}]},
        {"tool_calls": [{"id": "c1"}]},
        {"tool_call_id": "c1"},
    ]
    assert r.prompt_hash != canonical(prompt=[USER, {"role": "assistant", "content": ""}, {"role": "tool", "content": "42"}]).prompt_hash
    assert records_table([r], 0.1, with_tools(RECORDS_SCHEMA))["prompt"].to_pylist() == [r.prompt]
    plain = records_table([canonical()], 0.1)["prompt"].to_pylist()
    assert plain == [[USER]], "messages of other data have no further field"


@given(st.integers(0, 2**64 - 1), st.sampled_from([0.01, 0.1, 0.37, 0.5]))
def test_one_prompt_is_held_out_where_the_vectorised_split_says_so(prompt_hash, fraction):
    assert is_held_out(prompt_hash, fraction) == (split_of(np.array([prompt_hash], np.uint64), fraction)[0] == "eval")
