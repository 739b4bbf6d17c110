"""Facts of the stage ``calibrate``: the distribution of h, the shares of the mixture, and the rows that were scored."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from dora_core.strict_model import StrictModel
from tasks.runtime.facts import Quantiles, ScoringFacts


class FactorFacts(StrictModel):
    """h of one source's responses."""

    n: int
    mean: float
    quantiles: Quantiles


class Histogram(StrictModel):
    """Counts by source over common bins; one edge more than bins."""

    edges: list[float]
    counts: dict[str, list[int]]


class ScoredRows(StrictModel):
    """Outcome of scoring: in = scored + unscored."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    in_: int = Field(alias="in")
    scored: int
    unscored: int = Field(description="No number from the classifier: w = 1.")
    clipped: int = Field(description="Of the scored: a logit beyond its limit.")
    capped: int = Field(description="Factors that were lowered to the cap.")


class GoldenFraction(StrictModel):
    """Golden share α of the mixture, with its interval where it is estimated."""

    value: float
    low: float
    high: float
    estimated: bool


class Imbalance(StrictModel):
    """Standardised mean difference of a statistic: mixture − golden, in standard deviations."""

    before: float = Field(description="All responses alike.")
    after: float = Field(description="Responses weighted by h.")


class Balance(StrictModel):
    """Text statistics of the mixture beside golden ones."""

    statistics: dict[str, Imbalance]
    responses: int = Field(description="Compared responses of the mixture.")
    golden: int = Field(description="Compared golden responses.")
    ridge: float | None = Field(None, description="Of the enforced balance; null: not enforced.")

    @property
    def worst_before(self) -> float:
        return max((abs(one.before) for one in self.statistics.values()), default=0.0)

    @property
    def worst(self) -> float:
        """Largest |difference| after weighting."""
        return max((abs(one.after) for one in self.statistics.values()), default=0.0)


class Facts(ScoringFacts):
    """Facts of the stage ``calibrate``."""

    padding_waste: float | None = Field(description="Share of the new rows' padded tokens that are padding; null where nothing is new.")
    form: str
    ratio: Literal["conditional", "joint"] = Field("joint", description="Of responses given the prompt, or of both together.")
    h: dict[str, FactorFacts] = Field(description="By source.")
    histogram: Histogram
    ess: float = Field(description="Effective sample size as a share of the responses.")
    ess_by_form: dict[str, float] = Field(description="Of the raw factors.")
    capped_fraction: float
    rows: ScoredRows | None = Field(None, description="Absent before that was counted.")
    nan: int = Field(description="0.")
    tau: float = Field(description="Temper; 1 where the factors are as they came.")
    shares: dict[str, float] = Field(description="Shares of the mixture: `golden`, then every head.")
    alpha: GoldenFraction
    no_shift: bool = Field(description="No source can be told from golden: h = 1.")
    balance: Balance | None = Field(None, description="Absent with too few golden responses, and before that was measured.")
