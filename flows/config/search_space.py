"""Search spaces of ``dora tune --over KEY=SPACE``, and the values that its trials try.

Forms of a space::

    0.1..10          real numbers, evenly          8..64          whole numbers, if both ends are written as such
    0.1..10:log      evenly in their logarithm     0.1..10:log:5  five of them, evenly spaced, both ends included
    0.05,0.1,0.3     these values                  dora,erm       any values of YAML: names, lists, mappings

A space of finitely many values that fits into the number of trials is tried completely, in order. Otherwise values are drawn from a
scrambled Sobol sequence, which covers a space more evenly than independent draws, and of which more trials are a continuation: a search
that is repeated with more trials keeps those it has. Sampled numbers are rounded to three significant digits, so that the line to write
into a configuration gives the same run.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from dora_core.errors import ConfigError, did_you_mean
from dora_core.strict_model import StrictModel
from flows.config.yaml_text import read_yaml

SECTIONS = ("align", "calibration", "classifier", "trust", "sft")
"""Sections of the configuration that a search may vary: those that change the policy and neither the data nor how it is measured."""
FORMS = "allowed forms: LOW..HIGH, LOW..HIGH:log, LOW..HIGH:log:COUNT, or VALUE,VALUE,…; e.g. --over align.objective.lambda=0.1..10:log"
DIGITS = 3
MOST_VALUES = 1000
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"(?P<low>{_NUMBER})\.\.(?P<high>{_NUMBER})(?P<scale>:(?:log|linear))?(?P<count>:\d+)?")


class Range(StrictModel):
    """Numbers from ``low`` to ``high``, both included.

    Attributes:
        count: number of evenly spaced values; None: all numbers.
    """

    kind: Literal["range"] = "range"
    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"
    whole: bool = False
    count: int | None = None

    @property
    def values(self) -> list[Any] | None:
        """All values, ascending; None where there are too many to list."""
        if self.count is not None:
            return list(dict.fromkeys(self.at(i / (self.count - 1)) for i in range(self.count)))
        if self.whole and self.high - self.low < MOST_VALUES:
            return list(range(int(self.low), int(self.high) + 1))
        return None

    def draw(self, u: float) -> Any:
        """The value of a uniform number in [0, 1)."""
        values = self.values if self.count is not None else None
        if values is not None:
            return values[int(u * len(values))]
        if not self.whole:
            return self.at(u)
        low, high = self.low - 0.5, self.high + 0.5  # each whole number has an interval of its own
        number = low + u * (high - low) if self.scale == "linear" else low * (high / low) ** u
        return int(min(max(round(number), self.low), self.high))

    def at(self, position: float) -> Any:
        """The number at a position in [0, 1] of the scale."""
        low, high = self.low, self.high
        number = low + position * (high - low) if self.scale == "linear" else low * (high / low) ** position
        return round(number) if self.whole else float(min(max(_rounded(number), low), high))


class Choices(StrictModel):
    """One of some values."""

    kind: Literal["choices"] = "choices"
    values: list[Any] = Field(min_length=1)

    def draw(self, u: float) -> Any:
        """The value of a uniform number in [0, 1)."""
        return self.values[int(u * len(self.values))]


class Dimension(StrictModel):
    """A key of the configuration and its space."""

    key: str
    space: Range | Choices = Field(discriminator="kind")


class SearchConfig(StrictModel):
    """A search: what its trials vary, and its budget.

    Attributes:
        trials: at most so many beside the configuration as it is.
        minutes: budget of the trials together; None: no limit.
    """

    dimensions: list[Dimension] = Field(min_length=1)
    trials: int = Field(ge=1, le=1000)
    minutes: float | None = Field(None, gt=0)


def _rounded(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")


# ------------------------------------------------------------------------------------------------------------- parsing


def parse_dimensions(given: Sequence[str]) -> list[Dimension]:
    """Parse all ``--over`` options.

    Raises:
        ConfigError: with every mistake, one a line: a key that a search cannot vary, a key that is there twice, another form.
    """
    mistakes, found = list[str](), list[Dimension]()
    for text in given:
        try:
            found.append(parse_dimension(text))
        except ConfigError as error:
            mistakes.append(error.message)
    keys = [dimension.key for dimension in found]
    mistakes += [f"--over {key} is there twice: give all its values in one option" for key in dict.fromkeys(keys) if keys.count(key) > 1]
    mistakes += [
        f"--over {key} and --over {other} vary the same section: one of them would replace the other"
        for key in dict.fromkeys(keys)
        for other in dict.fromkeys(keys)
        if other.startswith(f"{key}.")
    ]
    if mistakes:
        raise ConfigError("\n  ".join(mistakes), hint=FORMS)
    return found


def parse_dimension(text: str) -> Dimension:
    """Parse ``KEY=SPACE``.

    Raises:
        ConfigError: names the option, what is wrong, and the forms.
    """
    key, equals, space = (part.strip() for part in text.partition("="))
    if not equals or not space or not all(key.split(".")):
        raise ConfigError(f"--over {text[:80]}: expected KEY=SPACE", hint=FORMS)
    section = key.split(".")[0]
    if section not in SECTIONS or key == section:
        raise ConfigError(
            f"--over {key}: a search varies keys of {', '.join(SECTIONS)}, which change the policy and neither the data nor its measurement"
            + (f"; name a key below {section}" if key == section and section in SECTIONS else f"; {did_you_mean(section, SECTIONS)}"),
            hint=FORMS,
        )
    return Dimension(key=key, space=_space(key, space))


def _space(key: str, text: str) -> Range | Choices:
    found = _RANGE.fullmatch(text)
    if found is not None:
        return _range(key, text, found)
    if re.match(rf"{_NUMBER}\.\.", text):
        raise ConfigError(f"--over {key}={text[:80]}: not a range", hint=FORMS)
    values, _ = read_yaml(f"[{text}]", f"--over {key}")
    if not isinstance(values, list) or not values:
        raise ConfigError(f"--over {key}={text[:80]}: no values", hint=FORMS)
    if any(values.count(value) > 1 for value in values):
        raise ConfigError(f"--over {key}={text[:80]}: a value is there twice", hint=FORMS)
    return Choices(values=values)


def _range(key: str, text: str, found: re.Match[str]) -> Range:
    low, high = float(found["low"]), float(found["high"])
    log = found["scale"] == ":log"
    count = None if found["count"] is None else int(found["count"][1:])
    if not low < high or not math.isfinite(high):
        raise ConfigError(f"--over {key}={text}: the lower end must be below the upper one", hint=FORMS)
    if log and low <= 0:
        raise ConfigError(f"--over {key}={text}: a range on a log scale must lie above 0", hint=FORMS)
    if count is not None and not 2 <= count <= MOST_VALUES:
        raise ConfigError(f"--over {key}={text}: COUNT must be 2 to {MOST_VALUES}", hint=FORMS)
    whole = all(re.fullmatch(r"[-+]?\d+", found[end]) for end in ("low", "high"))
    return Range(low=low, high=high, scale="log" if log else "linear", whole=whole, count=count)


# ------------------------------------------------------------------------------------------------------------ sampling


def sample_values(dimensions: Sequence[Dimension], trials: int, seed: int) -> list[dict[str, Any]]:
    """The values of at most ``trials`` different trials, by key; see the module docstring.

    Fewer are returned where the space has fewer, or where rounding leaves hardly more.
    """
    keys = [dimension.key for dimension in dimensions]
    finite = [values for dimension in dimensions if (values := dimension.space.values) is not None]
    if len(finite) == len(dimensions) and math.prod(map(len, finite)) <= trials:
        return [dict(zip(keys, combination, strict=True)) for combination in itertools.product(*finite)]
    found = list[dict[str, Any]]()
    for point in itertools.islice(_points(len(dimensions), seed), 20 * trials):
        drawn = {d.key: d.space.draw(u) for d, u in zip(dimensions, point, strict=True)}
        if drawn not in found:
            found.append(drawn)
        if len(found) == trials:
            break
    return found


def _points(dimensions: int, seed: int) -> Iterator[list[float]]:
    """Points of a scrambled Sobol sequence in [0, 1)^dimensions."""
    import torch

    engine = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
    while True:
        yield from engine.draw(64, dtype=torch.float64).tolist()
