"""Pairs whose columns name responses that are in other columns are refused with the lines that read those."""

from __future__ import annotations

import re

import pytest
import yaml

from dora_core.errors import DataError
from tests.dora_core.data.adapter.reading import one, order, read_rows, says
from tests.dora_core.data.cases import best, question, worst


def indices(i):
    return {
        "prompt": question(i),
        "responses": [worst(i), best(i)] if i % 2 else [best(i), worst(i)],
        "chosen": i % 2,
        "rejected": 1 - i % 2,
    }


def names(i):
    sides = {"a": best(i), "b": worst(i)} if i % 2 else {"a": worst(i), "b": best(i)}
    return {"prompt": question(i), **sides, "chosen": "a" if i % 2 else "b", "rejected": "b" if i % 2 else "a"}


@pytest.mark.parametrize(("make", "cause"), [(indices, "are indices"), (names, "are columns")])
def test_the_lines_of_the_error_read_the_rows_right(make, cause):
    rows = [make(i) for i in range(6)]
    with pytest.raises(DataError, match=cause) as caught:
        read_rows(rows)
    written = {}
    for line in re.findall("`([^`]*: [^`]*)`", caught.value.message.partition("write ")[2]):
        written |= yaml.safe_load(line)
    for i, (row,) in read_rows(rows, written).rows.items():
        said = says(row)
        assert said.prompt == [{"role": "user", "content": question(i)}]
        assert order(said.answers[best(i)], said.answers[worst(i)]) == 1


def test_names_of_models_are_no_responses():
    row = {
        "prompt": "q",
        "model_a": "gpt-4",
        "model_b": "llama",
        "answer_a": "x y",
        "answer_b": "z",
        "chosen": "llama",
        "rejected": "gpt-4",
    }
    with pytest.raises(DataError, match="are values of 'model_a' and 'model_b', not responses"):
        read_rows([row])


def test_short_responses_are_read_where_the_other_columns_are_decided():
    """Answers of a multiple-choice question, whose options are columns."""
    row = {"prompt": "Which one?", "A": "red", "B": "blue", "chosen": "A", "rejected": "B"}
    with pytest.raises(DataError, match="are columns, not responses"):
        read_rows([row])
    assert says(one([row], {"ignore": ["A", "B"]})).answers == {"A": 1.0, "B": 0.0}
    assert says(one([{"prompt": "Is it?", "chosen": "yes", "rejected": "no"}])).answers == {"yes": 1.0, "no": 0.0}
