"""One property per kind of fault that was found in published files: context dropped, payload dropped, scores ignored, A/B and label,
structure inside strings, split ignored, nesting, dialects, names that cannot be switched off, containers, late or opaque feedback, source
rules, values."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dora_core.config.adapter import DEFAULT_ROLES
from dora_core.errors import DataError
from tests.dora_core.data.adapter.reading import assert_same, read_rows, says
from tests.dora_core.data.cases import Truth, assistant, message, system, user

WORDS = st.text(alphabet="abcdefgh ÄÖé水🧥.,?!'\"\n", min_size=1, max_size=40).map(str.strip).filter(bool)
NUMBERS = st.integers(-5, 5) | st.floats(-5, 5, allow_nan=False).map(lambda x: round(x, 3))
few = settings(max_examples=60, deadline=None)


def one(rows, keys=None, **options):
    read = read_rows(rows, keys, **options)
    assert not read.problems, read.problems
    ((row,),) = read.rows.values()
    return row


# 1 ------------------------------------------------------------------------------------------------------- context dropped


@few
@given(WORDS, st.none() | st.just(" ") | WORDS, st.lists(st.tuples(WORDS, WORDS), max_size=2), st.just("") | WORDS, st.booleans())
def test_context_is_in_the_prompt_in_order(prompt, sys_text, history, extra, as_messages):
    past = [turn for asked, said in history for turn in (user(asked), assistant(said))]
    row = {
        "s": sys_text,
        "h": past if as_messages else [list(pair) for pair in history],
        "p": prompt,
        "i": extra,
        "chosen": "good",
        "rejected": "bad",
    }
    keys = {"shape": "pair", "columns": {"prompt": "p"}, "context": {"system": "s", "history": "h", "input": "i"}}
    expected = ([system(sys_text)] if sys_text and sys_text.strip() else []) + past + [user(f"{prompt}\n\n{extra}" if extra else prompt)]
    assert says(one([row], keys)).prompt == expected


@pytest.mark.parametrize("column", ["system", "system_prompt", "history", "tools", "sys_prompt", "input", "document", "context"])
def test_unnamed_context_needs_a_decision(column):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", column: "something"}
    with pytest.raises(DataError) as caught:
        read_rows([row], {"preset": "none"})
    assert f"'{column}'" in caught.value.hint and f"ignore: [{column}]" in caught.value.hint
    assert one([row], {"preset": "none", "ignore": [column]} if column != "tools" else {"preset": "none", "ignore": ["tools"]})


def test_two_system_prompts_are_a_problem():
    row = {"sys": "One.", "prompt": [system("Two."), user("q")], "chosen": "a", "rejected": "b"}
    read = read_rows([row, {**row, "sys": " Two. "}], {"shape": "pair", "context": {"system": "sys"}})
    assert read.problems[0][0].reason == "context_conflict"
    assert says(read.rows[1][0]).prompt == [system("Two."), user("q")]


# 2 ------------------------------------------------------------------------------------------------------- payload dropped


@few
@given(
    st.sampled_from(["tool_calls", "function_call", "images", "audio", "refusal", "reasoning_content", "thinking"]),
    st.sampled_from(["prompt", "chosen", "rejected"]),
    st.sampled_from([[{"id": "c"}], {"name": "f"}, "text"]),
)
def test_payload_of_a_message_refuses_the_row(key, where, payload):
    row = {"prompt": [user("q"), assistant("w"), user("z")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    row[where] = [*row[where][:-1], {**row[where][-1], key: payload}]
    read = read_rows([row])
    assert not read.rows and any(key in p.field or key in p.detail for p in read.problems[0])


@few
@given(st.sampled_from(["image_url", "image", "input_audio", "video", "file", "tool_use", None]), st.booleans())
def test_part_of_another_type_refuses_the_row(kind, in_prompt):
    parts = [{"type": "text", "text": "look"}, {"type": kind, "image_url": "x"}]
    row = {
        "prompt": [message("user", parts if in_prompt else "q")],
        "chosen": [message("assistant", "a" if in_prompt else parts)],
        "rejected": "b",
    }
    assert not read_rows([row]).rows


def test_kept_tool_calls_stay_with_the_prompt():
    call = [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}]
    prompt = [user("q"), {"role": "assistant", "content": None, "tool_calls": call}, {"role": "tool", "content": "4", "tool_call_id": "c1"}]
    row = {"prompt": prompt, "chosen": "a", "rejected": "b", "tools": [{"name": "f"}]}
    read = read_rows([row], {"context": {"tools": "tools"}, "messages": {"tools": "keep"}})
    fields = read.rows[0][0].fields
    assert json.loads(fields["prompt"][1]["tool_calls"]) == call and fields["prompt"][2]["tool_call_id"] == "c1"
    assert json.loads(fields["tools"]) == [{"name": "f"}]


@few
@given(st.sampled_from(["weight", "name", "train", "end_turn"]), st.sampled_from([0, 1.5, "x", False]))
def test_other_fields_of_a_message_are_counted(key, value):
    read = read_rows([{"prompt": "q", "chosen": [{**assistant("a"), key: value}], "rejected": "b"}])
    assert read.rows and read.notes[f"message field {key}"] == 1


# 3 ------------------------------------------------------------------------------------------------------- scores ignored


@few
@given(NUMBERS | st.none(), NUMBERS | st.none(), st.booleans())
def test_scores_beside_a_pair_are_its_rewards(high, low, decide):
    label = {"scores": [{"chosen": "sc", "rejected": "sr"}], "contradiction": "scores" if decide else "refuse"}
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "sc": high, "sr": low}
    read = read_rows([row, {**row, "sc": 2, "sr": 1}], {"shape": "pair", "label": label})
    if high is not None and low is not None and high < low and not decide:
        assert read.problems[0][0].reason == "score_contradicts_label"
        return
    known = high is not None and low is not None
    assert_same(says(read.rows[0][0]), Truth([user("q")], {"a": high if known else 1.0, "b": low if known else 0.0}))


@pytest.mark.parametrize(
    "column", ["score", "chosen_score", "rating", "reward_A", "rm_scores", "margin", "weight", "rank", "winner", "label", "preference"]
)
def test_unnamed_scores_and_labels_need_a_decision(column):
    with pytest.raises(DataError, match="need a decision") as caught:
        read_rows([{"prompt": "q", "chosen": "a", "rejected": "b", column: 2.0}])
    assert f"ignore: [{column}]" in caught.value.hint


@few
@given(st.lists(st.tuples(NUMBERS, NUMBERS | st.none()), min_size=2, max_size=4), st.tuples(NUMBERS, NUMBERS))
def test_weighted_scores_are_missing_where_any_is(marks, weights):
    assume(any(weights))
    row = {"prompt": "q", "responses": [f"r{i}" for i in range(len(marks))], "m": [{"x": x, "y": y} for x, y in marks]}
    keys = {"shape": "list", "label": {"scores": ["m[].x", "m[].y"], "weights": list(weights)}}
    try:
        found = says(one([row], keys)).answers
    except DataError:
        assert all(y is None for _, y in marks)
        return
    for i, (x, y) in enumerate(marks):
        wanted = None if y is None and weights[1] else weights[0] * x + (weights[1] * y if y is not None else 0.0)
        assert found[f"r{i}"] == (None if wanted is None else pytest.approx(wanted))


# 4 ------------------------------------------------------------------------------------------------------- A/B and a label


@few
@given(
    st.sampled_from([("a", "b", "tie"), (1, 0, 2), (True, False, "tie"), ("1", "2", "0"), (1.0, 2.0, 1.5), ("model_a", "model_b", None)]),
    st.integers(0, 2),
    st.booleans(),
)
def test_named_winner_decides(values, which, as_text):
    label = {"column": "w", "a": values[0], "b": [values[1]], "tie": [values[2]]}
    value = values[which]
    value = str(value) if as_text and value is not None else value
    row = {"q": "?", "x": "first", "y": "second", "w": value}
    found = says(one([row], {"shape": "ab", "columns": {"prompt": "q", "a": "x", "b": "y"}, "label": label})).answers
    assert (found["first"] > found["second"], found["first"] < found["second"]) == (which == 0, which == 1)


@few
@given(NUMBERS, st.sampled_from(["a", "b"]), st.floats(0, 3))
def test_signed_number_decides(number, positive, band):
    label = {"column": "w", "positive": positive, "tie_band": band}
    row = {"q": "?", "x": "first", "y": "second", "w": number}
    found = says(one([row], {"shape": "ab", "columns": {"prompt": "q", "a": "x", "b": "y"}, "label": label})).answers
    sign = 0 if abs(number) <= band else (1 if number > 0 else -1) * (1 if positive == "a" else -1)
    assert (found["first"] > found["second"]) - (found["first"] < found["second"]) == sign


@few
@given(st.integers(-1, 4), st.sampled_from([0, 1]), st.integers(2, 3))
def test_index_decides_or_is_refused(index, base, count):
    row = {"prompt": "q", "responses": [f"r{i}" for i in range(count)], "best": index}
    read = read_rows([row], {"shape": "list", "label": {"column": "best", "index_base": base}})
    if 0 <= index - base < count:
        found = says(read.rows[0][0]).answers
        assert max(found, key=found.__getitem__) == f"r{index - base}" and sorted(found.values()) == [0.0] * (count - 1) + [1.0]
    else:
        assert read.problems[0][0].reason == "unknown_label" and "allowed" in read.problems[0][0].detail


def test_value_that_is_not_named_is_refused_with_the_allowed_ones():
    keys = {
        "shape": "ab",
        "columns": {"prompt": "q", "a": "x", "b": "y"},
        "label": {"column": "w", "a": ["left"], "b": ["right"], "tie": ["tie"]},
    }
    read = read_rows([{"q": "?", "x": "1", "y": "2", "w": "LEFT "}, {"q": "?", "x": "1", "y": "2", "w": "middle"}], keys)
    assert says(read.rows[0][0]).answers == {"1": 1.0, "2": 0.0}
    assert (
        read.problems[1][0].detail
        == "is 'middle'; allowed: a: 'left'; b: 'right'; tie: 'tie'; add it to `label.a`, `label.b` or `label.tie`"
    )


# 5 ------------------------------------------------------------------------------------------------------- structure inside strings


@few
@given(WORDS, WORDS, WORDS, st.sampled_from(["json", "python", "numpy", "indent"]))
def test_messages_written_as_text_are_read_as_messages(asked, good, bad, style):
    def written(messages):
        if style in ("json", "indent"):
            return json.dumps(messages, indent=1 if style == "indent" else None, ensure_ascii=False)
        return repr(messages) if style == "python" else repr(messages).replace("}, {", "}\n {")

    row = {"chosen": written([user(asked), assistant(good)]), "rejected": written([user(asked), assistant(bad)])}
    read = read_rows([row])
    if good == bad:
        return
    assert_same(says(read.rows[0][0]), Truth([user(asked)], {good: 1.0, bad: 0.0}))


@few
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | WORDS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
        max_leaves=5,
    )
)
def test_json_by_intent_stays_text(value):
    text = json.dumps([value])
    row = {"prompt": "q", "chosen": text, "rejected": "other"}
    assert says(one([row])).answers == {text: 1.0, "other": 0.0}


@few
@given(WORDS, WORDS, WORDS, st.integers(0, 2))
def test_transcripts_are_read_anywhere(asked, good, bad, place):
    assume(good != bad and "\n\n" not in asked + good + bad)
    lead = f"\n\nHuman: {asked}\n\nAssistant:"
    if place == 0:
        row = {"chosen": f"{lead} {good}", "rejected": f"{lead} {bad}"}
    elif place == 1:
        row = {"prompt": lead, "responses": [f"{lead} {good}", f"{lead} {bad}"], "rewards": [1, 0]}
    else:
        row = {"prompt": lead, "chosen": good, "rejected": f"\n\nAssistant: {bad}"}
    assert_same(says(one([row])), Truth([user(asked)], {good: 1.0, bad: 0.0}))


# 6 ------------------------------------------------------------------------------------------------------- split ignored


@few
@given(
    st.sampled_from(
        [
            ("train", "train"),
            ("TRAIN_prefs", "train"),
            ("test", "eval"),
            ("valid1", "eval"),
            ("holdout", "eval"),
            ("gold", "eval"),
            ("zzz", None),
        ]
    )
)
def test_split_is_kept_or_refused(pair):
    name, wanted = pair
    read = read_rows([{"prompt": "q", "chosen": "a", "rejected": "b", "split": name}], {"splits": {"gold": "eval"}})
    if wanted is None:
        assert read.problems[0][0].reason == "unknown_split" and "columns: {split: false}" in read.problems[0][0].detail
    else:
        assert read.rows[0][0].fields["split"] == wanted


def test_column_that_holds_split_names_needs_a_decision():
    rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "part": ("train", "test")[i % 2]} for i in range(4)]
    with pytest.raises(DataError, match="need a decision") as caught:
        read_rows(rows)
    assert "columns: {split: part}" in caught.value.hint


# 7 ------------------------------------------------------------------------------------------------------- nesting


@few
@given(
    st.lists(st.tuples(WORDS, NUMBERS), min_size=2, max_size=4, unique_by=lambda pair: pair[0]),
    st.lists(st.sampled_from(["a", "b.c", "d-e", "f g"]), max_size=3),
)
def test_nested_responses_are_found_at_any_depth(scored, keys):
    inner = [{"out": {"text": text}, "score": score} for text, score in scored]
    row = {"prompt": "q"}
    value, path = inner, ""
    for key in reversed(keys):
        value, path = {key: value, "other": 1}, f'."{key}"{path}'
    row["root"] = value
    mapping = {"shape": "list", "columns": {"responses": f"root{path}[].out.text", "rewards": f"root{path}[].score"}}
    assert_same(says(one([row], mapping)), Truth([user("q")], dict(scored)))


def test_struct_where_text_is_expected_names_the_path():
    rows = [{"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]}]
    with pytest.raises(DataError, match=r"answers\[0\] is a struct, expected text: map `responses: answers\[\]\.answer`"):
        read_rows(rows, {"preset": "none", "columns": {"responses": "answers"}})


def test_path_that_leads_nowhere_names_the_keys_there():
    rows = [{"prompt": "q", "chosen": {"txt": "a"}, "rejected": {"txt": "b"}}]
    with pytest.raises(DataError, match="chosen has no key text; keys there: txt"):
        read_rows(rows, {"shape": "pair", "columns": {"chosen": "chosen.text", "rejected": "rejected.txt"}})


# 8 ------------------------------------------------------------------------------------------------------- dialects


@few
@given(
    st.sampled_from([name for name, role in DEFAULT_ROLES.items() if role == "user"]),
    st.sampled_from([name for name, role in DEFAULT_ROLES.items() if role == "assistant"]),
    st.sampled_from([name for name, role in DEFAULT_ROLES.items() if role == "system"]),
    st.sampled_from([("role", "content"), ("from", "value"), ("speaker", "words")]),
    st.sampled_from([str.upper, str.lower, str.title]),
)
def test_roles_and_keys_of_every_dialect(asker, answerer, ruler, keys, case):
    def turn(role, text):
        return message(case(role), text, *keys)

    row = {"prompt": [turn(ruler, "s"), turn(asker, "q")], "chosen": turn(answerer, "a"), "rejected": [turn(answerer, "b")]}
    settings_ = {"shape": "pair", "messages": {"role": "speaker", "content": "words"}} if keys[0] == "speaker" else {}
    assert_same(says(one([row], settings_)), Truth([system("s"), user("q")], {"a": 1.0, "b": 0.0}))


def test_unknown_role_is_refused_with_the_line_to_write():
    row = {"prompt": [message("narrator", "q")], "chosen": "a", "rejected": "b"}
    (problem,) = read_rows([row]).problems[0]
    assert problem.reason == "unknown_role" and "messages: {roles: {narrator: user}}" in problem.detail
    assert says(one([row], {"messages": {"roles": {"Narrator": "user"}}})).prompt == [user("q")]


# 9 ------------------------------------------------------------------------------------------------------- names switched off


@few
@given(st.sampled_from(["id", "task", "split", "chosen_source"]), st.sampled_from([["x"], {"a": 1}, 1.5, True]))
def test_column_with_a_canonical_name_can_be_switched_off(name, value):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", name: value}
    found = one([row], {"columns": {name: False}})
    assert says(found).answers == {"a": 1.0, "b": 0.0} and found.fields.get(name) is None


# 10 ------------------------------------------------------------------------------------------------------ containers


@few
@given(st.sampled_from([None, 1, "text", [1], True, 2.5]))
def test_row_that_is_not_an_object_is_a_problem(value):
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    read = read_rows([good, value])
    assert list(read.rows) == [0] and read.problems[1][0].reason == "wrong_type"


def test_column_of_a_partition_is_a_column_like_any_other():
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b", "source": "gpt-4"}]
    with pytest.raises(DataError, match="need a decision") as caught:
        read_rows(rows)
    assert "columns: {source: source}" in caught.value.hint
    assert says(one(rows, {"columns": {"source": "source"}})).sources == {"a": "gpt-4", "b": "gpt-4"}


# 11 ------------------------------------------------------------------------------------------------------ late or opaque feedback


@few
@given(st.lists(st.sampled_from(["up", "down", None, "later", "meh"]), min_size=1, max_size=8))
def test_feedback_is_read_skipped_or_refused(thumbs):
    label = {"column": "thumb", "true": ["up"], "false": ["down"], "skip": [None, "later"]}
    rows = [{"prompt": f"q{i}", "response": f"r{i}", "thumb": thumb} for i, thumb in enumerate(thumbs)]
    read = read_rows(rows, {"shape": "unpaired", "label": label})
    for i, thumb in enumerate(thumbs):
        if thumb in ("up", "down"):
            assert read.rows[i][0].fields["label"] is (thumb == "up")
        else:
            assert i not in read.rows and (i in read.problems) == (thumb == "meh")
    assert read.notes["rows without feedback, left out"] == sum(thumb in (None, "later") for thumb in thumbs)


@few
@given(st.lists(st.sampled_from(["left", "right", None]), max_size=3))
def test_several_annotations_count_if_they_agree(selected):
    row = {"q": "?", "x": "1", "y": "2", "notes": [{"pick": pick} for pick in selected]}
    keys = {
        "shape": "ab",
        "columns": {"prompt": "q", "a": "x", "b": "y"},
        "label": {"column": "notes[].pick", "a": ["left"], "b": ["right"]},
    }
    sure = {"q": "?", "x": "1", "y": "2", "notes": [{"pick": "left"}]}
    read = read_rows([row, sure], keys)
    named = {pick for pick in selected if pick}
    if len(named) == 2:
        assert read.problems[0][0].reason == "unknown_label"
    else:
        wanted = {"1": None, "2": None} if not named else {"1": 1.0, "2": 0.0} if named == {"left"} else {"1": 0.0, "2": 1.0}
        assert says(read.rows[0][0]).answers == wanted


# 12 ------------------------------------------------------------------------------------------------------ source rules


@few
@given(st.none() | WORDS.filter(str.isprintable), st.none() | WORDS.filter(str.isprintable), st.booleans())
def test_sources_go_with_their_responses(one_source, other_source, a_wins):
    keys = {
        "shape": "ab",
        "columns": {"prompt": "q", "a": "x", "b": "y", "a_source": "mx", "b_source": "my"},
        "label": {"column": "w", "a": [1], "b": [2]},
    }
    found = says(one([{"q": "?", "x": "first", "y": "second", "mx": one_source, "my": other_source, "w": 1 if a_wins else 2}], keys))
    wanted = {text: source for text, source in (("first", one_source), ("second", other_source)) if source is not None}
    assert (found.sources or {}) == wanted


# 13 ------------------------------------------------------------------------------------------------------ values


@few
@given(st.text(max_size=60).filter(lambda text: text.strip()), st.text(max_size=60).filter(lambda text: text.strip()))
def test_texts_are_kept_exactly(good, bad):
    assume(good != bad)
    read = read_rows([{"prompt": "q", "chosen": good, "rejected": bad}])
    for row in read.rows.get(0, []):
        assert (row.fields["chosen"], row.fields["rejected"]) == (good, bad)
    if not read.rows:
        assert {str(p.reason) for p in read.problems[0]} <= {"templated_text", "structured_text", "wrong_type", "unknown_role"}


# 14 ---------------------------------------------------------------------------------------------- found by trying further schemas


@pytest.mark.parametrize(
    "keys",
    [
        {"columns": {"responses": "a[].t", "rewards": "a[].rank"}},
        {"shape": "list", "columns": {"responses": "a[].t"}, "label": {"scores": ["a[].rank"]}},
    ],
)
def test_rank_is_not_read_as_a_reward(keys):
    row = {"prompt": "q", "a": [{"t": "best", "rank": 1}, {"t": "worst", "rank": 2}]}
    with pytest.raises(DataError, match=r"label: \{ranks: a\[\].rank, base: 1\}"):
        read_rows([row], keys)
    ranked = {"shape": "list", "columns": {"responses": "a[].t"}, "label": {"ranks": "a[].rank", "base": 1}}
    assert says(one([row], ranked)).answers == {"best": -1.0, "worst": -2.0}
    weighed = {**ranked, "label": {"scores": ["a[].rank"], "weights": [1]}}
    assert says(one([row], weighed)).answers == {"best": 1.0, "worst": 2.0}


@pytest.mark.parametrize("key", ["tools", "functions", "images"])
def test_tools_and_media_beside_a_nested_prompt_refuse_a_late_row(key):
    row = {"in": {"messages": [user("q")]}, "chosen": "a", "rejected": "b"}
    late = {**row, "in": {**row["in"], key: [{"name": "f"}]}}
    read = read_rows([*[row] * 80, late], {"shape": "pair", "columns": {"prompt": "in.messages"}})
    assert set(read.problems) == {80} and read.problems[80][0].field == f"in.{key}"


@few
@given(st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=3), st.sampled_from([list, json.dumps, repr]), st.booleans())
def test_lists_of_one_text_per_turn_are_conversations(turns, written, as_pair):
    asked, first, other = (list(column) for column in zip(*turns, strict=True))
    assume(first[-1].strip() != other[-1].strip())
    row = {"prompt": written(asked), "x": written(first), "y": written(other), "w": "left"}
    keys = (
        {"shape": "pair", "columns": {"chosen": "x", "rejected": "y"}, "ignore": ["w"]}
        if as_pair
        else {"shape": "ab", "columns": {"a": "x", "b": "y"}, "label": {"column": "w", "a": ["left"], "b": ["right"]}}
    )
    read = read_rows([row], keys)
    if first[:-1] == other[:-1]:
        truth = Truth([], {first[-1]: 1.0, other[-1]: 0.0})
        truth.prompt.extend(turn for q, a in zip(asked[:-1], first[:-1], strict=True) for turn in (user(q), assistant(a)))
        truth.prompt.append(user(asked[-1]))
        assert_same(says(read.rows[0][0]), truth)
    else:
        assert read.problems[0][0].reason == "prompt_mismatch"


def test_list_of_texts_as_prompt_beside_plain_responses_is_refused():
    read = read_rows([{"prompt": '["q"]', "chosen": "a", "rejected": "b"}])
    assert "prompt: prompt[0]" in read.problems[0][0].detail
    assert says(one([{"prompt": '["q"]', "chosen": "a", "rejected": "b"}], {"columns": {"prompt": "prompt[0]"}})).prompt == [user("q")]


@pytest.mark.parametrize(
    "prompt",
    [
        "### Human: q\n### Assistant:",
        "### Prompt:\nq\n\n### Response:",
        "Instruct: q\nOutput:",
        "<image>\nq",
        "q <image>",
        "q data:image/png;base64," + "A" * 100,
    ],
)
def test_open_templates_and_media_in_a_prompt_refuse_the_row(prompt):
    read = read_rows([{"prompt": prompt, "chosen": "a", "rejected": "b"}])
    assert not read.rows and read.problems[0][0].reason in ("templated_text", "media")
    assert "templated: parse" not in read.problems[0][0].detail


@pytest.mark.parametrize("prompt", ["# Notes\n### Setup: x\n### Output: y", "Draw an <image> tag in SVG.", "Question: q\n\nAnswer:"])
def test_headings_and_tags_inside_a_prompt_are_text(prompt):
    assert says(one([{"prompt": prompt, "chosen": "a", "rejected": "b"}])).prompt == [user(prompt)]


def test_turns_after_the_prompt_that_the_responses_share_belong_to_the_prompt():
    row = {
        "prompt": [user("q")],
        "chosen": [assistant("w"), user("z"), assistant("a")],
        "rejected": [assistant("w"), user("z"), assistant("b")],
    }
    assert says(one([row])).prompt == [user("q"), assistant("w"), user("z")]


@pytest.mark.parametrize(("label", "approved"), [("desirable", 1.0), ("Undesirable", 0.0), ("\N{THUMBS UP SIGN}", 1.0), (False, 0.0)])
def test_usual_names_of_approvals_are_known(label, approved):
    assert says(one([{"prompt": "q", "completion": "a", "label": label}])).answers == {"a": approved}


def test_responses_that_differ_in_white_space_alone_are_no_preference():
    keys = {"shape": "ab", "columns": {"a": "x", "b": "y"}, "label": {"column": "w", "a": [1], "b": [2]}}
    read = read_rows([{"prompt": "q", "x": "a", "y": " a\n", "w": 1}], keys)
    assert read.problems[0][0].reason == "identical_pair"


def test_whole_number_written_as_a_float_is_an_id():
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert one([{**row, "id": 3.0}]).fields["id"] == 3
    assert read_rows([{**row, "id": 3.5}]).problems[0][0].field == "id"


def test_list_of_texts_as_a_response_names_the_line():
    detail = read_rows([{"prompt": "q", "chosen": ["a"], "rejected": ["b", "c"]}]).problems[0][0].detail
    assert "`chosen: chosen[0]`" in detail and "shape: list" in detail


@pytest.mark.parametrize(
    ("one_column", "other", "line"),
    [
        ("chosen_response", "rejected_response", "columns: {chosen: chosen_response, rejected: rejected_response}"),
        ("response_a", "response_b", "columns: {a: response_a, b: response_b}"),
        ("completion1", "completion2", "columns: {a: completion1, b: completion2}"),
        ("outputA", "outputB", "columns: {a: outputA, b: outputB}"),
    ],
)
def test_columns_that_look_like_two_responses_are_suggested(one_column, other, line):
    with pytest.raises(DataError) as caught:
        read_rows([{"prompt": "q", one_column: "a b", other: "c d"}])
    assert line in caught.value.hint
