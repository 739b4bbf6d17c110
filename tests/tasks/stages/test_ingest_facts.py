"""Facts of ingest: results of earlier releases stay readable, and nothing is added when they are written again."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tasks.stages._ingest_facts import Facts, InputFacts, MappingFacts

FIRST_RELEASE: dict[str, Any] = {
    "rows_in": 40,
    "rows_bad": 1,
    "golden_rows": 0,
    "bad_by_reason": {"media": 1},
    "records": {"train": 36, "eval": 3},
    "sources": {"human": {"responses": 39, "share": 0.5, "mean_chars": 12.5, "measured_rewards": 39}},
    "fingerprint": "0" * 64,
}


def test_facts_of_the_first_release_are_read_and_written_unchanged() -> None:
    facts = Facts.model_validate(FIRST_RELEASE)
    assert facts.dump() == FIRST_RELEASE
    assert (facts.repeated_responses, facts.inputs, facts.findings, facts.first_bad) == (None, [], [], [])


def test_findings_and_bad_rows_have_their_places() -> None:
    finding = {"rule": "tied_scores", "level": "note", "count": 1, "message": "m", "hint": "h", "examples": [{"file": "a", "row": 0}]}
    bad = {"kind": "train", "reason": "media", "file": "a", "row": 3, "text": "field images"}
    written = {**FIRST_RELEASE, "findings": [finding], "first_bad": [bad]}
    assert Facts.model_validate(written).dump() == written
    with pytest.raises(ValidationError, match="level"):
        Facts.model_validate({**written, "findings": [{**finding, "level": "warning"}]})


@pytest.mark.parametrize("model", [Facts, InputFacts, MappingFacts])
def test_no_fact_holds_texts_of_the_data(model: type) -> None:
    assert not {"prompt", "responses", "response", "messages"} & set(model.model_fields)


def test_counts_are_needed() -> None:
    with pytest.raises(ValidationError, match="rows_bad"):
        Facts.model_validate({name: value for name, value in FIRST_RELEASE.items() if name != "rows_bad"})
