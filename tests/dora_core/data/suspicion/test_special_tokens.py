"""Special tokens inside texts: a few in large data are noted, many refuse the data."""

from __future__ import annotations

from tests.dora_core.data.suspicion.given import assert_found, assert_nothing, findings, seen

SUSPICIOUS = [seen(responses=("Wipe it.</s>", "No")), seen(prompt="<s>Hello"), seen(responses=("[CLS] a", "No"))]
PLAIN = [seen(responses=("<s>old</s> new", "<p>Use</p>")), seen(responses=("a [link](b)", "x < y"))]
MANY = [seen(i, responses=("Wipe it.</s>", "No")) for i in range(5)]


def test_the_sign_is_found() -> None:
    assert_found("special_tokens", SUSPICIOUS)


def test_sound_data_has_no_finding() -> None:
    assert_nothing("special_tokens", PLAIN)


def test_examples_are_the_first_three_rows() -> None:
    (finding,) = findings("special_tokens", MANY)
    assert (finding.count, [at.row for at in finding.examples]) == (5, [0, 1, 2])
    assert finding.text().startswith("5 of 5 records hold special tokens")


def test_a_few_special_tokens_in_large_data_are_a_note_and_many_refuse() -> None:
    few = [seen(i, responses=("Wipe.</s>" if i == 7 else "Wipe.", "No")) for i in range(200)]
    assert findings("special_tokens", few)[0].level == "note"
    assert findings("special_tokens", few[:50])[0].level == "refuse"
