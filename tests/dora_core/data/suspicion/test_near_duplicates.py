"""Nearly equal prompts across splits, and nearly equal responses of two sources."""

from __future__ import annotations

from tests.dora_core.data.suspicion.given import LONG, assert_found, assert_nothing, findings, seen

SUSPICIOUS = [seen(0, prompt=LONG + " now"), seen(1, prompt=LONG + " please", split="eval")]
PLAIN = [seen(0, prompt=LONG), seen(1, prompt="Describe in a few words why the sea is salt and the rivers are not", split="eval")]
MANY = [seen(9, prompt=LONG + " now"), *(seen(i, prompt=f"{LONG} please {i}", split="eval") for i in range(5))]


def test_the_sign_is_found() -> None:
    assert_found("near_duplicates", SUSPICIOUS)


def test_sound_data_has_no_finding() -> None:
    assert_nothing("near_duplicates", PLAIN)


def test_examples_are_the_first_three_rows() -> None:
    (finding,) = findings("near_duplicates", MANY)
    assert (finding.count, [at.row for at in finding.examples]) == (5, [0, 1, 2])
    assert finding.text().startswith("5 evaluation prompts are nearly those of training data")


def test_responses_that_two_sources_share_are_near_duplicates() -> None:
    copied = [seen(i, (LONG + " here", LONG + " there"), sources=("human", "gpt-4")) for i in range(2)]
    (finding,) = findings("near_duplicates", copied)
    assert "responses of two sources are nearly equal (gpt-4 and human)" in finding.message
    assert findings("near_duplicates", [seen(0, (LONG + " here", LONG + " there"), sources=("human", "human"))]) == []
