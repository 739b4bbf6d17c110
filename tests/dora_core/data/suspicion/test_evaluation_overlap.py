"""Training data that shares 13 words in a row with an evaluation file."""

from __future__ import annotations

from tests.dora_core.data.suspicion.given import LONG, findings, seen

REFERENCE = "Before. " + LONG + ". After that comes more."
OVERLAPPING, APART = " ".join(LONG.split()[:13]), " ".join(LONG.split()[:12])


def test_thirteen_words_in_a_row_of_an_evaluation_file_are_an_overlap_and_twelve_are_not() -> None:
    (finding,) = findings("evaluation_overlap", [seen(responses=(f"Well, {OVERLAPPING.upper()}!", "No"))], [REFERENCE])
    assert finding.level == "refuse" and finding.count == 1
    assert findings("evaluation_overlap", [seen(responses=(f"Well, {APART} or not", "No"))], [REFERENCE]) == []
    assert findings("evaluation_overlap", [seen(responses=(OVERLAPPING, "No"), split="eval")], [REFERENCE]) == [], (
        "held-out rows may overlap"
    )


def test_examples_are_the_first_three_rows() -> None:
    (finding,) = findings("evaluation_overlap", [seen(i, responses=(OVERLAPPING, "No")) for i in range(5)], [REFERENCE])
    assert (finding.count, [at.row for at in finding.examples]) == (5, [0, 1, 2])
    assert finding.text().startswith("5 of 5 records of the training data share 13 words in a row")


def test_a_short_reference_counts_as_a_whole_and_a_very_short_one_not() -> None:
    short = "Rinse it twice with cold water"
    assert findings("evaluation_overlap", [seen(responses=(short, "No"))], [short])[0].count == 1
    assert findings("evaluation_overlap", [seen(responses=("Rinse it twice", "No"))], ["Rinse it twice"]) == []
