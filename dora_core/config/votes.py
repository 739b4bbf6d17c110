"""Votes: several judgements of one pair, from which the probability follows that its label is right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from dora_core.config.label_parts import TwoScores, Values, disjoint
from dora_core.config.path_syntax import PathText
from dora_core.strict_model import StrictModel


class Votes(StrictModel):
    """Votes on two responses, counted or one by one: `{counts: {a: votes_a, b: votes_b}}`, `{each: annotations[].score, positive: b}`.

    With v votes for the record's preferred response (a tie counts ½) of n, the probability q that its label is right is the mean of a
    Beta(prior + v, prior + n − v) distribution, q = (v + prior)/(n + 2·prior): the share of the votes, drawn towards ½ where they are few.
    Without votes a record has no q. Shape ab without a label: the majority is the label.
    """

    counts: TwoScores | None = Field(None, description="Numbers of votes: `{a, b}`, or `{chosen, rejected}` in shape pair.")
    each: PathText | None = Field(None, description="List of the votes, e.g. `individual_preference[].score`; null ones do not count.")
    a: Values = Field(default_factory=list, description="each: values that prefer A (shape pair: the preferred response).")
    b: Values = Field(default_factory=list, description="each: values that prefer B (shape pair: the other response).")
    tie: Values = Field(default_factory=list, description="each: values that prefer neither.")
    positive: Literal["a", "b"] | None = Field(None, description="each: votes are signed numbers; a positive one prefers this response.")
    tie_band: float = Field(0.0, ge=0, le=1e9, description="each: signed numbers of at most this size prefer neither.")
    prior: float = Field(
        0.5,
        ge=0,
        le=1000,
        description="Pseudo-votes for either response: ½ is Jeffreys' prior, 1 a uniform one, 0 the share of votes.",
    )

    @model_validator(mode="after")
    def _check(self) -> Votes:
        if (self.counts is None) == (self.each is None):
            raise ValueError("give either `counts` or `each`")
        named = bool(self.a or self.b or self.tie)
        if self.counts is not None and (named or self.positive is not None):
            raise ValueError("`a`, `b`, `tie` and `positive` say what a vote of `each` means; `counts` needs none of them")
        if self.each is not None and named == (self.positive is not None):
            raise ValueError("say what a vote means: `positive: a` or `positive: b` for signed numbers, or `a: [...]` and `b: [...]`")
        if named and not (self.a and self.b):
            raise ValueError("`a` and `b` need values that prefer the response")
        disjoint({"a": self.a, "b": self.b, "tie": self.tie})
        return self

    @property
    def paths(self) -> Iterator[tuple[str, str]]:
        """(key, path) of everything that is read."""
        if self.each is not None:
            yield "each", self.each
        elif self.counts is not None:
            yield from (("counts", path) for path in self.counts.paths)
