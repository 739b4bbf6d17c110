"""Generated schemas × mappings: never a traceback, never a record that says something else than its row."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dora_core.config.adapter import Adapter
from dora_core.data.adapter.canonical import CanonicalRow
from dora_core.data.adapter.driver import RowAdapter
from dora_core.data.adapter.resolve import resolve
from dora_core.errors import DoraError
from tests.dora_core.data.adapter.reading import assert_same, read_rows, says
from tests.dora_core.data.cases import Truth, system, user

WORDS = st.text(alphabet="abcdefgh ÄéЖ水.,?!'\"", min_size=1, max_size=24).map(str.strip).filter(bool)
KEYS = st.sampled_from(["text", "a.b", "out-put", "x", "Answer 1", "data", "meta", "content", "value", "role", "|", "[0]"])
quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
thorough = settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))


# ------------------------------------------------------------------------------------------------------- a truth, written in some schema


def quoted(key: str) -> str:
    return f'"{key}"'


@st.composite
def written(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, Any], list[Truth]]:
    """Rows of a drawn schema, the adapter's keys that map it, and what every row says."""
    shape = draw(st.sampled_from(["pair", "list", "ab", "scored"]))
    nest = draw(st.lists(KEYS, max_size=2))
    style = draw(st.sampled_from(["text", "message", "list", "conversation", "json", "transcript"]))
    roles = draw(st.sampled_from([("system", "user", "assistant"), ("developer", "human", "gpt"), ("System", "Prompter", "Bot")]))
    keys = draw(st.sampled_from([("role", "content"), ("from", "value")]))
    has_system = draw(st.booleans()) and style != "transcript"
    system_apart = draw(st.booleans()) or style in ("text", "message", "list")
    number = draw(st.sampled_from(["plain", "text"]))
    names = draw(st.permutations(["c1", "c2", "c3", "c4", "c5", "c6"]))

    def nested(value: Any) -> Any:
        for key in reversed(nest):
            value = {key: value, "side": 3}
        return value

    tail = "".join(f".{quoted(key)}" for key in nest)

    def turn(role: int, text: str) -> dict[str, str]:
        return {keys[0]: roles[role], keys[1]: text}

    rows, truths = [], []
    count = draw(st.integers(2, 4)) if shape == "list" else 2
    for i in range(draw(st.integers(1, 3))):
        asked = draw(WORDS)
        answers = draw(st.lists(WORDS, min_size=count, max_size=count, unique=True))
        scores = draw(st.lists(st.integers(-3, 3).map(lambda n: n / 2), min_size=count, max_size=count))
        lead = [turn(0, "Be kind.")] * (has_system and not system_apart) + [turn(1, asked)]
        replies: list[Any] = []
        for text in answers:
            talk = [*lead, turn(2, text)]
            replies.append(
                {
                    "text": text,
                    "message": talk[-1],
                    "list": talk[-1:],
                    "conversation": talk,
                    "json": json.dumps(talk),
                    "transcript": f"\n\nHuman: {asked}\n\nAssistant: {text}",
                }[style]
            )
        row: dict[str, Any] = {"nr": i, names[0]: nested(asked)}
        if has_system and system_apart:
            row[names[1]] = "Be kind."
        told = [str(score) for score in scores] if number == "text" else scores
        if shape == "list":
            row[names[2]] = nested([{"reply": reply, "score": score} for reply, score in zip(replies, told, strict=True)])
            wanted: list[float | None] = [*scores]
        else:
            row[names[2]], row[names[3]] = nested(replies[0]), nested(replies[1])
            wanted = [1.0, 0.0]
            if shape in ("ab", "scored"):
                row[names[4]], row[names[5]] = told if shape == "scored" else (draw(st.sampled_from(["A", "b", "t"])), None)
                wanted = [*scores] if shape == "scored" else {"A": [1.0, 0.0], "b": [0.0, 1.0], "t": [0.5, 0.5]}[row[names[4]]]
        rows.append(row)
        lead_said = [system("Be kind.")] * has_system + [user(asked)]
        truths.append(Truth(lead_said, dict(zip(answers, wanted, strict=True))))
    columns: dict[str, Any] = {"prompt": f"{names[0]}{tail}"}
    mapping: dict[str, Any] = {"preset": "none", "columns": columns, "ignore": ["nr"]}
    if has_system and system_apart:
        mapping["context"] = {"system": names[1]}
    if shape == "list":
        columns |= {"responses": f"{names[2]}{tail}[].reply", "rewards": f"{names[2]}{tail}[].score"}
        mapping["shape"] = "list"
    elif shape == "pair":
        columns |= {"chosen": f"{names[2]}{tail}", "rejected": f"{names[3]}{tail}"}
        mapping["shape"] = "pair"
    else:
        columns |= {"a": f"{names[2]}{tail}", "b": f"{names[3]}{tail}"}
        label = (
            {"column": names[4], "a": ["a"], "b": ["B"], "tie": ["t"]} if shape == "ab" else {"scores": [{"a": names[4], "b": names[5]}]}
        )
        mapping |= {"shape": "ab", "label": label}
    return rows, mapping, truths


def check_written(drawn: tuple[list[dict[str, Any]], dict[str, Any], list[Truth]]) -> None:
    rows, mapping, truths = drawn
    read = read_rows(rows, mapping)
    assert not read.problems, read.problems
    for i, truth in enumerate(truths):
        (row,) = read.rows[i]
        assert_same(says(row), truth)


@quick
@given(written())
def test_any_schema_says_what_its_rows_say(drawn):
    check_written(drawn)


@pytest.mark.nightly
@thorough
@given(written())
def test_any_schema_says_what_its_rows_say_thoroughly(drawn):
    check_written(drawn)


# ------------------------------------------------------------------------------------------------------- any value under any mapping

NASTY = st.sampled_from(
    [
        "[{'role': 'user', 'content': 'x'}]",
        '{"role": "assistant", "content": "x"}',
        "[{",
        "\n\nHuman: a\n\nAssistant: b",
        "<|im_end|>",
        "[INST] x [/INST] y",
        "\ud800",
        "\x00",
        "",
        " ",
        "N/A",
        "4,5",
        "nan",
        "1e999",
        "-",
        "[1 2]",
        "['a' 'b']",
        "[" * 2000 + "]" * 2000,
        "Q: a\nA: b",
        "Q: a\nA: c",
        "train",
        "tie",
        "A",
        "B",
    ]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | NASTY | st.binary(max_size=3)
ROW_KEYS = st.sampled_from(["role", "content", "from", "value", "text", "type", "tool_calls", "x", "replies", "rank"])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ROW_KEYS, inner, max_size=4), max_leaves=12)
COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "responses",
    "rewards",
    "a",
    "b",
    "response",
    "label",
    "system",
    "id",
    "split",
    "task",
    "tools",
    "weight",
)
PATHS = st.sampled_from(
    [
        *COLUMNS,
        "chosen.text",
        "responses[].text",
        "responses[0].x",
        "responses[-1]",
        "prompt.value|x",
        "label[].x[].text",
        "responses.content",
    ]
)
LABELS = st.sampled_from(
    [
        {"column": "label", "a": ["A", 1], "b": ["B", 0], "tie": ["tie", None]},
        {"column": "label", "positive": "b", "tie_band": 0.5},
        {"column": "label", "index_base": 1},
        {"scores": ["rewards"]},
        {"scores": ["rewards", "responses[].rank"], "weights": [1, -0.5]},
        {"scores": [{"a": "label", "b": "weight"}]},
        {"scores": [{"chosen": "label", "rejected": "weight"}], "contradiction": "scores"},
        {"ranks": "rewards", "base": 0},
        {"column": "label", "true": [True], "false": [False, "B"], "skip": [None]},
        None,
    ]
)


@st.composite
def mapped(draw: st.DrawFn) -> tuple[list[Any], dict[str, Any], bool]:
    rows = draw(st.lists(st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=10) | LEAVES, min_size=1, max_size=4))
    fields = st.sampled_from(
        ["prompt", "chosen", "rejected", "responses", "rewards", "sources", "a", "b", "response", "id", "split", "task", "weight", "source"]
    )
    keys: dict[str, Any] = {
        "preset": draw(st.sampled_from(["auto", "none"])),
        "shape": draw(st.sampled_from(["pair", "list", "ab", "unpaired", "rows", "tree", "single", None])),
        "columns": draw(st.dictionaries(fields, PATHS | st.just(False), max_size=4)),
        "label": draw(LABELS),
        "context": draw(st.dictionaries(st.sampled_from(["system", "history", "input"]), PATHS, max_size=2)),
        "messages": draw(
            st.fixed_dictionaries(
                {
                    "reasoning": st.sampled_from(["refuse", "keep", "drop"]),
                    "templated": st.sampled_from(["refuse", "parse"]),
                    "tools": st.sampled_from(["refuse", "keep"]),
                    "implicit": st.sampled_from(["marker", "longest"]),
                }
            )
        )
        | draw(st.sampled_from([{"differ": "refuse"}, {"differ": "cut"}, {"learn_turns": "all"}])),
    }
    if keys["shape"] == "tree":
        keys["tree"] = draw(
            st.sampled_from(
                [
                    {"id": "id", "parent": "label", "role": "task", "text": "prompt", "rank": "rewards"},
                    {"root": "prompt", "replies": "replies"},
                ]
            )
        )
    return rows, keys, draw(st.booleans())


def texts_in(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in (*value, *value.values()) for text in texts_in(item)]
    return [text for item in value for text in texts_in(item)] if isinstance(value, list) else []


def check_mapped(drawn: tuple[list[Any], dict[str, Any], bool]) -> None:
    """Either a typed error, or problems, or records whose texts are all in the rows."""
    rows, keys, golden = drawn
    try:
        adapter = Adapter.model_validate(keys)
    except ValueError:
        return
    objects = [row for row in rows if isinstance(row, dict)]
    columns = list(dict.fromkeys(key for row in objects for key in row))
    try:
        resolved = resolve(adapter, columns, objects, golden=golden).adapter
    except DoraError as error:
        assert error.message and isinstance(error.hint, str)
        resolved = adapter
    try:
        reader = RowAdapter(resolved, columns)
    except DoraError:
        return
    there = "\n".join(texts_in(rows)).replace("\\n", "\n")
    for index, item in reader.rows(enumerate(rows)):
        assert 0 <= index < len(rows)
        if isinstance(item, CanonicalRow):
            fields = item.fields
            replies = fields.get("responses") or [fields.get("chosen"), fields.get("rejected"), fields.get("response")]
            for text in [text for text in replies if text is not None]:
                assert isinstance(text, str)
                assert all(part.strip() in there for part in text.replace("<think>\n", "\0").replace("\n</think>\n\n", "\0").split("\0")), (
                    text
                )
            assert all(
                set(turn) >= {"role", "content"} and turn["role"] in ("system", "user", "assistant", "tool") for turn in fields["prompt"]
            )
        else:
            assert item and all(problem.reason and problem.detail for problem in item)


@quick
@given(mapped())
def test_any_value_under_any_mapping_is_read_or_refused(drawn):
    check_mapped(drawn)


@pytest.mark.nightly
@thorough
@given(mapped())
def test_any_value_under_any_mapping_is_read_or_refused_thoroughly(drawn):
    check_mapped(drawn)
