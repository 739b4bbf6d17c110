"""YAML and ``--set`` as data."""

from __future__ import annotations

from typing import Any

import pytest

from dora_core.errors import ConfigError
from flows.config.models import RealignConfig
from flows.config.yaml_text import apply_override, dotted, parse_override, read_yaml, split_path


def test_every_key_has_its_line() -> None:
    data, lines = read_yaml("a: 1\nb:\n  - c: x\n  - 1e-3\n", "my.yaml")
    assert data == {"a": 1, "b": [{"c": "x"}, 0.001]}
    assert lines == {("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 0, "c"): 3, ("b", 1): 4}


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("yes", "yes"), ("true", True), ("2026-01-01", "2026-01-01"), ("[1, a]", [1, "a"]), ("", None)]
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert parse_override(f"a.b={text}") == ("a.b", value)


@pytest.mark.parametrize("assignment", ["a", "=1", "a..b=1", ".a=1"])
def test_an_assignment_of_another_form_is_refused(assignment: str) -> None:
    with pytest.raises(ConfigError, match=r"expected key\.path=value"):
        parse_override(assignment)


def test_an_override_makes_its_parents_and_appends_to_lists() -> None:
    data: dict[str, Any] = {"data": {"train": [{"path": "a"}]}}
    for override in (("data.train.0.path", "b"), ("data.train.1.path", "c"), ("align.objective.lambda", 2.0), ("tags.0", "x")):
        apply_override(data, override)
    assert data == {"data": {"train": [{"path": "b"}, {"path": "c"}]}, "align": {"objective": {"lambda": 2.0}}, "tags": ["x"]}


@pytest.mark.parametrize(("path", "message"), [("a.b", "is a single value"), ("l.5", "is a list of 1"), ("l.x.y", "is a list of 1")])
def test_an_override_below_a_value_says_what_is_there(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_override({"a": 1, "l": [0]}, (path, 1))


def test_a_key_given_twice_names_both_lines() -> None:
    with pytest.raises(ConfigError, match=r"my\.yaml line 3: a is given twice \(first on line 1\)"):
        read_yaml("a: 1\nb: 2\na: 3\n", "my.yaml")


# ------------------------------------------------------------------------------------------------------------ dots in keys


@pytest.mark.parametrize("keys", [["a", "b"], ["a", "gpt-3.5"], ["a", "b=c"], ["a", 'say "x"'], ["0"], ["a", "模型.1"]])
def test_a_dotted_path_is_split_into_its_keys(keys: list[str]) -> None:
    assert split_path(dotted(keys)) == keys


def test_quoted_keys_may_hold_dots_and_equal_signs() -> None:
    assert parse_override('a."b.c=d".e=1') == ('a."b.c=d".e', 1)
    assert split_path("a.'b.c'.d") == ["a", "b.c", "d"]
    for malformed in ('a."b=1', "a.'b=1", "a.=1", 'a."b"c=1'):
        with pytest.raises(ConfigError, match=r"expected key\.path=value"):
            parse_override(malformed)


@pytest.mark.parametrize(
    "assignments",
    [
        ["calibration.shares.human=0.5", "calibration.shares.gpt-3.5=0.5"],
        ["calibration.shares.human=0.5", 'calibration.shares."gpt-3.5"=0.5'],
        ["calibration={shares: {human: 0.1, gpt-3.5: 0.1}}", "calibration.shares.human=0.5", "calibration.shares.gpt-3.5=0.5"],
    ],
)
def test_names_with_dots_in_a_free_mapping(assignments: list[str]) -> None:
    data: dict[str, Any] = {}
    for assignment in assignments:
        apply_override(data, parse_override(assignment), RealignConfig)
    assert data == {"calibration": {"shares": {"human": 0.5, "gpt-3.5": 0.5}}}


def test_the_longest_key_that_is_there_is_taken_without_a_model() -> None:
    data = {"m": {"a": {"b": 1}, "a.b": 2, "a.b.c": 3}}
    apply_override(data, ("m.a.b", 9))
    assert data == {"m": {"a": {"b": 1}, "a.b": 9, "a.b.c": 3}}


def test_an_override_below_a_list_shows_the_form_for_names_with_dots() -> None:
    with pytest.raises(ConfigError) as error:
        apply_override({"l": [0]}, ("l.gpt-3.5", 1))
    assert "quotes" in error.value.hint and '"gpt-3.5"' in error.value.hint
