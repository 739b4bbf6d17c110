"""Responses that are JSON, where the prompt does not ask for JSON."""

from __future__ import annotations

from tests.dora_core.data.suspicion.given import assert_found, assert_nothing, findings, seen

SUSPICIOUS = [seen(responses=('{"text": "Wipe it."}', "No"))]
PLAIN = [seen(responses=('{"text": "Wipe it."}', "No"), prompt="Give JSON"), seen(responses=("[1] see there", "{x}"))]
MANY = [seen(i, responses=('["Wipe it."]', "No")) for i in range(5)]


def test_the_sign_is_found() -> None:
    assert_found("json_responses", SUSPICIOUS)


def test_sound_data_has_no_finding() -> None:
    assert_nothing("json_responses", PLAIN)


def test_examples_are_the_first_three_rows() -> None:
    (finding,) = findings("json_responses", MANY)
    assert (finding.count, [at.row for at in finding.examples]) == (5, [0, 1, 2])
    assert finding.text().startswith("5 of 5 records have a response that is a JSON object or list")
