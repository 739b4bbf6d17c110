"""Votes become the probability that a label is right: Beta means by hand, votes one by one, and what cannot be read."""

from __future__ import annotations

from typing import Any

import pytest

from dora_core.data.adapter.votes import label_probability
from tests.dora_core.data.adapter.reading import one, read_rows

AB = {"shape": "ab", "columns": {"prompt": "q", "a": "x", "b": "y"}}
WINNER = {"label": {"column": "w", "a": ["A"], "b": ["B"]}}
COUNTS = {"votes": {"counts": {"a": "n_a", "b": "n_b"}}}
SIGNED = {"votes": {"each": "notes[].score", "positive": "b"}}


def row(**beside: Any) -> dict[str, Any]:
    return {"q": "?", "x": "first", "y": "second"} | beside


def test_probability_is_the_mean_of_a_beta_posterior() -> None:
    """3 of 4 votes: Beta(½ + 3, ½ + 1) has mean 3.5/5, Beta(1 + 3, 1 + 1) 4/6; without a prior the share 3/4; a single vote 1.5/2."""
    assert [label_probability(3, 4, prior) for prior in (0.5, 1, 0)] == pytest.approx([0.7, 4 / 6, 0.75])
    assert label_probability(1, 1, 0.5) == 0.75 and label_probability(0, 0, 0.5) is None


@pytest.mark.parametrize(("winner", "chosen", "q"), [("A", "first", 3.5 / 5), ("B", "second", 1.5 / 5)])
def test_counts_are_read_from_the_label_s_side(winner: str, chosen: str, q: float) -> None:
    """3 votes for A and 1 for B: (3 + ½)/(4 + 1) for the label A, (1 + ½)/(4 + 1) for the label B, which most votes are against."""
    read = read_rows([row(w=winner, n_a=3, n_b="1")], AB | WINNER | COUNTS)
    assert read.rows[0][0].fields["chosen"] == chosen
    assert read.rows[0][0].fields["label_probability"] == pytest.approx(q)
    assert read.notes["labels that most votes are against"] == (winner == "B")


def test_signed_votes_as_in_helpsteer3() -> None:
    """Scores 2, 1, −1 and 0, a positive one for B: 2½ of 4 votes are for B: (2.5 + ½)/5."""
    notes = [{"score": score} for score in (2, 1, -1, 0, None)]
    fields = one([row(w="B", notes=notes)], AB | WINNER | SIGNED).fields
    assert fields["label_probability"] == pytest.approx(3 / 5)


def test_named_votes() -> None:
    """A, A and a tie: 2½ of 3 votes are for A: (2.5 + 1)/(3 + 2) at a uniform prior."""
    votes = {"votes": {"each": "picks", "a": ["left"], "b": ["right"], "tie": ["same"], "prior": 1}}
    assert one([row(w="A", picks=["left", "LEFT", "same"])], AB | WINNER | votes).fields["label_probability"] == pytest.approx(3.5 / 5)


@pytest.mark.parametrize(("votes", "form"), [((3, 1), "pairwise"), ((2, 2), "listwise"), ((0, 0), "listwise")])
def test_without_a_label_the_majority_decides(votes: tuple[int, int], form: str) -> None:
    found = one([row(n_a=votes[0], n_b=votes[1])], AB | COUNTS)
    assert found.form == form
    if form == "pairwise":
        assert found.fields["chosen"] == "first" and found.fields["label_probability"] == pytest.approx(0.7)
    else:
        assert found.fields["rewards"] == ([0.5, 0.5] if votes[0] else [None, None]) and "label_probability" not in found.fields


def test_pairs_have_votes_for_the_chosen_and_the_rejected_response() -> None:
    keys = {"votes": {"counts": {"chosen": "yes", "rejected": "no"}}}
    pair = {"prompt": "?", "chosen": "a", "rejected": "b", "yes": 4, "no": 0}
    assert one([pair], keys).fields["label_probability"] == pytest.approx(4.5 / 5)
    assert one([pair | {"yes": None}], keys).fields["label_probability"] is None
    scored = {"label": {"scores": [{"chosen": "s", "rejected": "t"}], "contradiction": "scores"}}
    assert one([pair | {"s": 1.0, "t": 2.0}], keys | scored).fields["label_probability"] == pytest.approx(0.5 / 5)


def test_a_rank_s_smaller_number_is_the_label() -> None:
    keys = AB | {"label": {"ranks": {"a": "r", "b": "s"}, "base": 1}} | COUNTS
    assert one([row(r=1, s=2, n_a=3, n_b=1)], keys).fields["label_probability"] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("keys", "beside", "says"),
    [
        (COUNTS, {"n_a": -1, "n_b": 2}, "is -1, expected a number of votes"),
        (COUNTS, {"n_a": "many", "n_b": 2}, "expected a number"),
        ({"votes": {"each": "picks", "a": ["l"], "b": ["r"]}}, {"picks": ["l", "m"]}, "add it to `votes.a`, `votes.b` or `votes.tie`"),
        ({"votes": {"each": "picks", "positive": "a"}}, {"picks": [1, "x"]}, "expected a number"),
        ({"votes": {"each": "picks", "positive": "a"}}, {"picks": 3}, "expected a list"),
    ],
)
def test_what_is_no_vote_is_a_problem(keys: dict[str, Any], beside: dict[str, Any], says: str) -> None:
    good = row(w="A", **{name: [] if name == "picks" else 1 for name in beside})
    read = read_rows([good, row(w="A", **beside)], AB | WINNER | keys, columns=[*good])
    assert says in read.problems[1][0].detail
