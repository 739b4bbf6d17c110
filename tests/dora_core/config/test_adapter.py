"""Declaration of an adapter: variants of a label, conflicts of keys, all errors at once."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from dora_core.config.adapter import (
    Adapter,
    IndexLabel,
    RanksLabel,
    ScoresLabel,
    SignedLabel,
    UnpairedLabel,
    WinnerLabel,
    paths_of,
)
from dora_core.config.label_parts import value_forms


def read(text: str) -> Adapter:
    return Adapter.model_validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("{column: winner, a: model_a, b: [model_b], tie: [tie]}", WinnerLabel),
        ("{column: strength, positive: b, tie_band: 0.5}", SignedLabel),
        ("{column: choice, index_base: 0}", IndexLabel),
        ("{scores: [rating]}", ScoresLabel),
        ("{scores: [{a: score_a, b: score_b}]}", ScoresLabel),
        ("{ranks: rank, base: 1}", RanksLabel),
        ("{column: label, true: [true, 1], false: no}", UnpairedLabel),
    ],
)
def test_variant_is_recognised_by_its_keys_and_survives_a_round_trip(label, kind):
    adapter = read(f"label: {label}")
    assert type(adapter.label) is kind
    written = yaml.safe_load(yaml.safe_dump(adapter.model_dump(mode="json", exclude_unset=True)))
    assert Adapter.model_validate(written) == adapter


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label: {x: 1}", "a label is one of"),
        ("label: {column: w, a: x, b: x}", "under both `a` and `b`"),
        ("label: {column: w, a: 1, b: [true]}", "under both"),
        ("label: {scores: [x, y]}", "2 scores need `weights`"),
        ("label: {scores: [x], weights: [0]}", "at least one weight"),
        ("label: {scores: [x], weights: [.nan]}", "finite"),
        ("label: {scores: [{a: x}]}", "give two paths"),
        ("{shape: pair, label: {column: w, a: x, b: y}}", "shape pair cannot have a label of the kind winner; kinds it can have: scores"),
        ("{shape: pair, label: {scores: [{a: x, b: y}]}}", "names its scores {chosen, rejected}"),
        ("{shape: list, label: {scores: [{a: x, b: y}]}}", "takes paths"),
        ("{columns: {rewards: x}, label: {scores: [y]}}", "both say which response is better"),
        ("{context: {tools: t}}", "needs `messages: {tools: keep}`"),
        ("{messages: {role: from}}", "given together"),
        ("{columns: {prompt: p}, ignore: [p]}", "which `columns.prompt` reads"),
        ("{carry: [p], ignore: [p]}", "under both `carry` and `ignore`"),
        ("{shape: pair, group: {by: x}}", "`group.by` is for shape rows"),
        ("{shape: pair, tree: {}}", "`tree` is for shape tree"),
        ("{columns: {sources: x, source: y}}", "exclude each other"),
        ("{columns: {promt: x}}", "promt"),
        ("{messages: {roles: {x: human}}}", "'system', 'user', 'assistant' or 'tool'"),
    ],
)
def test_conflict_is_named(text, message):
    with pytest.raises(ValidationError) as caught:
        read(text)
    assert message in str(caught.value)


def test_all_errors_are_collected():
    with pytest.raises(ValidationError) as caught:
        read("{shape: triple, columns: {prompt: 'a..b', chosen: 'c]'}, label: {scores: [x, y]}, carry: ['']}")
    assert {error["loc"][0] for error in caught.value.errors()} == {"shape", "columns", "label", "carry"}


def test_false_and_null_are_different_mappings():
    columns = read("{columns: {task: false, id: null}}").columns
    assert columns.task is False and columns.id is None


def test_paths_of_lists_everything_that_is_read():
    adapter = read(
        "{shape: ab, columns: {a: x, b: y.z}, "
        "label: {column: w, a: 1, b: 2, "
        "check: [{a: s, b: "
        "t}]}, context: "
        "{system: sys}, carry: "
        "[c], ignore: [i]}"
    )
    assert list(paths_of(adapter)) == [
        ("columns.a", "x"),
        ("columns.b", "y.z"),
        ("label.column", "w"),
        ("label.check", "s"),
        ("label.check", "t"),
        ("context.system", "sys"),
    ]


@pytest.mark.parametrize(("one", "other"), [(1, "1"), (1, 1.0), (1, True), (0, "0.0"), ("Tie ", "tie"), (1.5, "1.50"), (None, None)])
def test_equal_values_share_a_form(one, other):
    assert value_forms(one) & value_forms(other)


@pytest.mark.parametrize(("one", "other"), [(1, 2), ("a", "b"), (None, ""), (None, "null"), (1, "one"), (True, False), (10, "1_0")])
def test_different_values_share_none(one, other):
    assert not value_forms(one) & value_forms(other)
