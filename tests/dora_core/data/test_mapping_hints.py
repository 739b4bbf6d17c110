"""Lines for schemas that no preset knows: filled in with the names and values of the file, and read right where nothing is left open."""

from __future__ import annotations

import re

import pytest
import yaml

from dora_core.data.mapping_hints import mapping_hint
from tests.dora_core.data.adapter.reading import order, read_rows, says
from tests.dora_core.data.cases import best, question, thing, worst

Q, A, B = "instruction", "output_1", "output_2"


def two(i, **extra):
    first = i % 2 == 1
    return {Q: question(i), A: best(i) if first else worst(i), B: worst(i) if first else best(i), **extra}


def lines_of(hint):
    """The lines of a hint as one configuration."""
    keys = {}
    for line in re.findall("`([^`]*)`", hint):
        keys |= yaml.safe_load(line)
    return keys


SCHEMAS = {
    "winner by letter": lambda i: two(i, verdict="A" if i % 2 else "B"),
    "winner by model": lambda i: two(i, winner="model_a" if i % 2 else "model_b"),
    "JudgeBench": lambda i: two(i, label="A>B" if i % 2 else "B>A"),
    "scores of both": lambda i: two(i, score_1=5 if i % 2 else 1, score_2=1 if i % 2 else 5),
    "votes": lambda i: two(i, votes_1="3" if i % 2 else "0", votes_2="0" if i % 2 else "3"),
    "capitals": lambda i: {"Prompt": question(i), "Chosen": best(i), "Rejected": worst(i)},
    "pos and neg": lambda i: {"prompt": question(i), "pos_resp": best(i), "neg_resp": worst(i)},
    "rows in a struct": lambda i: {"row_idx": i, "row": {"prompt": question(i), "chosen": best(i), "rejected": worst(i)}},
    "list of structs": lambda i: {
        "user_input": question(i),
        "all": [{"response": worst(i), "score": 1}, {"response": best(i), "score": 9}],
    },
    "flags": lambda i: {
        "prompt": question(i),
        "all": [{"answer": worst(i), "is_preferred": False}, {"answer": best(i), "is_preferred": True}],
    },
    "struct of lists": lambda i: {"prompt": question(i), "all": {"text": [worst(i), best(i)], "score": [1.0, 4.0]}},
    "texts and numbers": lambda i: {"prompt": question(i), "answers": [worst(i), best(i)], "elo": [900, 1200]},
    "rows with a score": lambda i: {
        "user_prompt": question(i // 2),
        "model_response": (best, worst)[i % 2](i // 2),
        "score": (90, 20)[i % 2],
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_lines_read_the_rows_right(name):
    rows = [SCHEMAS[name](i) for i in range(8)]
    columns = list(rows[0])
    found = read_rows(rows, lines_of(mapping_hint(columns, rows)))
    assert not found.problems and len(found.rows) == (4 if name == "rows with a score" else 8)
    for row in (one for of_row in found.rows.values() for one in of_row):
        said = says(row)
        i = next(i for i in range(8) if said.prompt == [{"role": "user", "content": question(i)}])
        assert order(said.answers[best(i)], said.answers[worst(i)]) == 1, thing(i)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (lambda i: two(i, overall_preference=-2), "`label: {column: overall_preference, positive: …}`"),
        (lambda i: two(i, slider=12.5 + i), "`label: {column: slider, positive: …, zero: …}`"),
        (lambda i: two(i, label=1 + i % 2), "`label: {column: label, a: …, b: …}` (its values: 1, 2)"),
        (
            lambda i: {"prompt": "q", "completion": "a b", "feedback": "good"},
            "`shape: unpaired` or `rows` with `columns: {response: completion}`",
        ),
        (lambda i: {"prompt": "q", "answers": {"text": ["a", "b"], "rank": [2, 1]}}, "`label: {ranks: answers.rank, base: …}`"),
        (lambda i: {"x": 1}, "`columns: {chosen: …, rejected: …}`"),
    ],
)
def test_what_only_the_user_knows_is_left_open(row, expected):
    rows = [row(i) for i in range(4)]
    assert expected in mapping_hint(list(rows[0]), rows)
