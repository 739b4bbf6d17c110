"""Parts that labels and votes share: values that name an outcome, and a number for each of two responses."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

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
