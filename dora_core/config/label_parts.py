"""Parts of labels: values that name an outcome, a number for each of two responses, and votes on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from dora_core.config.path_syntax import PathText
from dora_core.strict_model import StrictModel

Value: TypeAlias = bool | int | float | str | None
"""A label's value as it is in the data. Compared as value and as text: 1, 1.0, "1" and true are equal."""


class TwoScores(StrictModel):
    """A number for each of two responses: `a` and `b`, or `chosen` and `rejected`."""

    a: PathText | None = Field(None, description="Number of response A.")
    b: PathText | None = Field(None, description="Number of response B.")
    chosen: PathText | None = Field(None, description="Number of the preferred response.")
    rejected: PathText | None = Field(None, description="Number of the other response.")

    @model_validator(mode="after")
    def _check(self) -> TwoScores:
        if self.model_dump(exclude_none=True).keys() not in ({"a", "b"}, {"chosen", "rejected"}):
            raise ValueError("give two paths: `a` and `b`, or `chosen` and `rejected`")
        return self

    @property
    def paths(self) -> tuple[str, str]:
        """Paths of the first and the second response."""
        first, second = (path for path in (self.a, self.b, self.chosen, self.rejected) if path is not None)
        return first, second


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


Values: TypeAlias = Annotated[list[Value], BeforeValidator(_as_list)]


def value_forms(value: Value) -> frozenset[str]:
    """Texts under which a label's value is compared: ``1``, ``1.0``, ``"1"`` and ``true`` share one."""
    if value is None:
        return frozenset({"\0null"})
    if isinstance(value, bool):
        return frozenset({"true", "1"} if value else {"false", "0"})
    text = str(value).strip().casefold()
    try:
        number = float(text) if not isinstance(value, str) or (text[:1] in "+-.0123456789" and "_" not in text) else None
    except ValueError:
        number = None
    if number is not None and abs(number) < 2**53:
        return frozenset({str(int(number)) if number == int(number) else repr(number)})
    return frozenset({text})


def disjoint(named: dict[str, list[Value]]) -> None:
    """Check that no value has two meanings.

    Raises:
        ValueError: a value is under two names.
    """
    seen: dict[str, str] = {}
    for name, values in named.items():
        for value in values:
            for form in value_forms(value):
                if seen.setdefault(form, name) != name:
                    raise ValueError(f"value {value!r} is under both `{seen[form]}` and `{name}`")


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
