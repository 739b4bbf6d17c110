"""Facts of the stage ``evaluate``: the measures (``_preference_measures.py`` computes them), those of its twins (``_twin_measures.py``) and
the result of the promotion gate (``_promotion_gate.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from dora_core.evaluation.metrics import GroupInterval, Interval, Reliability, RewardConfidence
from dora_core.strict_model import StrictModel
from tasks.runtime.facts import Facts as BaseFacts

GateOutcome = Literal["passed", "cannot tell", "failed"]


class OfTwins(StrictModel):
    """A measure that twins (``dora_core/config/twins.py``) have too; earlier releases had one, ``twin``."""

    @model_validator(mode="before")
    @classmethod
    def _one_twin(cls, given: Any) -> Any:
        for old in ("twin", "twin_all"):
            if isinstance(given, dict) and old in given:
                one = given[old]
                given = {name: value for name, value in given.items() if name != old} | ({"twins": {"erm": one}} if one is not None else {})
        return given


class ByModel(OfTwins):
    """A measure of each model; the start has no implicit reward, and twins exist only if configured."""

    policy: Interval
    start: Interval | None = None
    twins: dict[str, Interval] = Field(default_factory=dict)

    @classmethod
    def of(cls, found: Mapping[str, Interval]) -> Self:
        """From the measures of ``policy``, ``start`` and twins by name."""
        own = {name: found[name] for name in ("policy", "start") if name in found}
        return cls(**own, twins={name: interval for name, interval in found.items() if name not in own})

    def measured(self) -> dict[str, Interval]:
        """By model, of those that have the measure."""
        return {"policy": self.policy} | ({"start": self.start} if self.start else {}) | self.twins


class Part(StrictModel):
    """Measures of a part of the pairs."""

    accuracy: ByModel = Field(description="Share of pairs whose better response has the larger implicit reward.")
    margin: ByModel = Field(description="Implicit reward of the better response minus that of the worse, nats.")
    ranking: ByModel = Field(description="Share of pairs whose better response has the larger likelihood per token.")


class MarginHistogram(OfTwins):
    """Number of pairs per bin of the margin."""

    edges: list[float]
    policy: list[int]
    twins: dict[str, list[int]] = Field(default_factory=dict)


class Group(StrictModel):
    """Measures of the pairs of one source, task or value of a carried column. Prompts weigh the same in ``accuracy``, pairs in the other
    numbers."""

    accuracy: Interval
    accuracy_policy: float
    ranking_policy: float
    ranking_start: float
    n: int = Field(description="Pairs.")


class CarriedGroups(StrictModel):
    """Measures by the values of a carried column (``evaluate.groups``)."""

    groups: dict[str, Group] = Field(description="Bins of numbers ascending, other groups by size; rare values together as `other`.")
    without: int = Field(description="Pairs of records without a value.")
    merged: int = Field(description="Values that are together in the group `other`.")


class Lift(OfTwins):
    """Paired differences: ranking accuracy of policy minus start on each part, preference accuracy of policy minus each twin's."""

    start_all: Interval | None = None
    start_golden: Interval | None = None
    start_synthetic: Interval | None = None
    twins: dict[str, Interval] = Field(default_factory=dict, description="By twin.")

    def over_start(self) -> dict[str, Interval]:
        """The differences to the start, by part that has pairs."""
        parts = {"all": self.start_all, "golden": self.start_golden, "synthetic": self.start_synthetic}
        return {part: interval for part, interval in parts.items() if interval is not None}


class RewardCalibration(Reliability):
    """Calibration of σ(β · margin) as the probability that the better response wins."""

    beta: float


class RewardCorrelation(StrictModel):
    """Spearman's ρ of a score with the measured rewards within a prompt; null where no record has two different rewards and scores."""

    implicit: Interval | None = Field(description="Of the policy's implicit reward.")
    likelihood: Interval | None = Field(description="Of the policy's likelihood per token.")
    likelihood_start: Interval | None = Field(description="Of the start's likelihood per token.")


class LabelMeasures(StrictModel):
    """Measures of labelled responses, over all prompts: of the implicit reward of policy and twins, and the likelihood's as a baseline."""

    desirable: int = Field(description="Responses with the label desirable.")
    undesirable: int
    prompts: int
    pairs: int = Field(description="Pairs of a desirable and an undesirable response of the same prompt; they count in ``parts``.")
    auc: ByModel | None = Field(
        description="Probability that a desirable response has a larger implicit reward than an undesirable one, of any prompt; "
        "½ is chance. Null with one label only."
    )
    accuracy: ByModel = Field(description="Share whose implicit reward has the sign of the label: + desirable, − undesirable.")
    accuracy_desirable: ByModel | None = Field(description="The same of desirable responses alone; null without one.")
    accuracy_undesirable: ByModel | None = Field(description="The same of undesirable responses alone; null without one.")
    auc_likelihood: ByModel | None = Field(description="AUC of the likelihood per token, which the start has too.")


class PreferenceMeasures(StrictModel):
    """All measures of the ``evaluate`` stage on preferences and labels."""

    parts: dict[str, Part] = Field(description="all; golden and synthetic where there are such pairs; empty without a pair.")
    margins: MarginHistogram
    reward_confidence: RewardConfidence
    by_source: dict[str, Group] = Field(description="By the source of the better response.")
    by_task: dict[str, Group]
    by_column: dict[str, CarriedGroups] = Field(default_factory=dict, description="By the columns of `evaluate.groups`.")
    worst_group: GroupInterval | None = Field(description="Lowest accuracy among the groups of enough prompts.")
    reward_calibration: RewardCalibration | None
    reward_correlation: RewardCorrelation
    lift: Lift
    kl: Interval | None = Field(description="KL(policy‖start) per sampled response, nats; null where none is sampled.")
    labels: LabelMeasures | None = Field(None, description="Of unpaired records; null without such a record.")


class RuleResult(StrictModel):
    """A rule that was checked."""

    name: str
    passed: bool = Field(description="Whether it counts as met.")
    value: float = Field(description="The number that is compared: an estimate, or the lower bound of one.")
    threshold: float
    message: str = Field(description="The rule with its threshold and the number found.")
    uncertain: bool = Field(False, description="The interval contains the threshold: the rule is neither met nor broken.")

    @property
    def reason(self) -> str:
        """The message after the rule's name."""
        return f"{self.name}: {self.message}"


class GateResult(StrictModel):
    """Every rule that was checked; the gate passes when all of them do."""

    passed: bool
    rules: list[RuleResult]
    unchecked: dict[str, str] = Field(
        default_factory=dict,
        description="Reason for every rule that has a threshold and no evidence; empty in results of earlier releases.",
    )

    @property
    def broken(self) -> list[RuleResult]:
        """The rules that were shown not to be met."""
        return [rule for rule in self.rules if not rule.passed and not rule.uncertain]

    @property
    def uncertain(self) -> list[RuleResult]:
        """The rules that the evidence does not decide, and that do not count as met."""
        return [rule for rule in self.rules if rule.uncertain and not rule.passed]

    @property
    def outcome(self) -> GateOutcome:
        return "passed" if self.passed else "failed" if self.broken else "cannot tell"


class TwinMeasures(StrictModel):
    """A twin: its own measures, and paired differences of the policy to it. Null where there are no pairs or no win rates."""

    accuracy: Interval | None = Field(description="Held-out preference accuracy of the twin.")
    ranking: Interval | None = Field(description="Ranking accuracy of the twin.")
    accuracy_lift: Interval | None = Field(description="Preference accuracy of the policy minus the twin's.")
    win_rate: Interval | None = Field(description="Win rate of the policy against the twin.")
    win_rate_lift: Interval | None = Field(description="Win rate against the start of the policy minus the twin's.")


class BenchmarkChange(StrictModel):
    """Score of one task of lm-eval before and after alignment."""

    metric: str
    start: Interval
    policy: Interval
    change: Interval = Field(description="Policy minus start over the same examples, paired.")


class Facts(PreferenceMeasures, BaseFacts):
    """Measures of the policy, and the result of the promotion gate."""

    gate: GateResult
    twins: dict[str, TwinMeasures] = Field(default_factory=dict, description="By twin, on the same held-out prompts.")
    benchmarks: dict[str, BenchmarkChange] = Field(default_factory=dict, description="By task.")
    equal_pairs: int = Field(0, description="Preferences left out: their responses differ, and are the same tokens after the cut.")
    summary: str = Field("", description="One sentence: win rate against the start, and the difference to every twin.")
