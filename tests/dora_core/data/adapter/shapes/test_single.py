"""Shape single: trusted responses."""

from __future__ import annotations

from tests.dora_core.data.adapter.reading import assert_case, read_rows
from tests.dora_core.data.cases import CASES, user


def test_trusted_response_becomes_a_golden_row():
    read = read_rows([{"prompt": "q", "response": "r"}], {"shape": "single"}, golden=True)
    (row,) = read.rows[0]
    assert (row.form, row.fields["response"]) == ("golden", "r") and row.fields["prompt"] == [user("q")]


def test_schema_with_one_trusted_response_per_row_is_read_right():
    assert assert_case(CASES["golden_transcript"]()).resolved.shape == "single"
