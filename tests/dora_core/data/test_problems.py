"""Reasons as they stand in tables: machine codes that later releases must not change."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dora_core.data.problems import Problem, Reason, in_words


def test_codes_are_the_names_in_lower_case() -> None:
    assert {reason.name.lower() for reason in Reason} == {reason.value for reason in Reason} and len(Reason) == 33
    assert f"{Problem('id', Reason.DUPLICATE_ID, 'twice').reason}" == "duplicate_id"


def test_the_schema_of_the_configuration_loads_no_reader() -> None:
    """Formats name problems, and the configuration names formats: none of them may load pyarrow, which takes 0.2 s."""
    code = "import sys, dora_core.config.method; assert not {'pyarrow', 'numpy', 'datasets', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_problem_in_words_names_the_field_what_was_found_and_the_next_step() -> None:
    assert in_words(Problem("rejected", Reason.EMPTY_RESPONSE, "no characters")) == (
        "rejected: no characters; take the row out: a model that says nothing has given no response"
    )
    assert in_words(Problem("task", Reason.WRONG_TYPE, "is a list; write `columns: {task: false}`")) == (
        "task is a list; write `columns: {task: false}`"
    )
    assert in_words(Problem("", Reason.UNPARSABLE, "half a line")).startswith("row: half a line; ")


@pytest.mark.parametrize(
    ("field", "detail", "remedy"),
    [
        ("prompt", "ends with a message of role assistant, expected user", "map the turn"),
        ("sources[0]", "is float, expected a string or null", "`columns: {sources: false}`"),
        ("model", "differs from the partition model=a in the file's path", "correct the value, or take the row out"),
        ("chosen", "is dict, expected a string", "map the part that holds the text"),
    ],
)
def test_remedy_of_a_wrong_type_fits_what_was_found(field: str, detail: str, remedy: str) -> None:
    assert remedy in in_words(Problem(field, Reason.WRONG_TYPE, detail))
