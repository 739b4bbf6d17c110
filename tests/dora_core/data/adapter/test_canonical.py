"""Canonical rows: a repeated row is a repetition only without an id."""

from __future__ import annotations

from dora_core.data.adapter.canonical import CanonicalRow, is_repetition
from dora_core.data.problems import Reason, problem

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


def test_a_repeated_row_without_an_id_is_a_repetition_and_with_an_id_a_fault() -> None:
    twice = [problem("id", Reason.DUPLICATE_ID, "is there twice")]
    assert is_repetition(CanonicalRow("pairwise", dict(PAIR)), twice)
    assert not is_repetition(CanonicalRow("pairwise", {**PAIR, "id": "7"}), twice)
    assert not is_repetition(CanonicalRow("pairwise", dict(PAIR)), [*twice, problem("prompt", Reason.WRONG_TYPE, "x")])
    assert not is_repetition(twice, twice)
