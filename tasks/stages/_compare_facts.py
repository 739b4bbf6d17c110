"""Facts of the stage ``compare``: the policy against every opponent."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dora_core.evaluation.metrics import GroupInterval, Interval
from dora_core.evaluation.winrate import ByLength, Outcomes
from dora_core.strict_model import StrictModel
from tasks.runtime.facts import Facts as BaseFacts


class Lengths(StrictModel):
    """Mean lengths of the compared responses."""

    unit: Literal["tokens", "characters"]
    policy: float
    opponent: float


class Wins(Outcomes, ByLength):
    """The policy against one opponent."""

    sign_test_p: float = Field(description="Exact two-sided p-value of prompts being as likely won as lost.")
    length: Lengths
    records: int = Field(description="Records of the policy that are compared.")
    records_left_out: int = Field(description="Records of the policy without a judged pair.")
    pairs: int = Field(description="Pairs of a policy's and an opponent's response.")
    pairs_without_score: int
    by_source: dict[str, Outcomes] = Field(description="By the source of the best response.")
    by_task: dict[str, Outcomes]
    worst_group: GroupInterval | None = Field(description="Lowest win rate among the groups of enough prompts.")


class Facts(BaseFacts):
    """The policy against every opponent that has scores."""

    judge: str = Field(description="Kind of the judge; of two files, its name.")
    wins: dict[str, Wins] = Field(description="By opponent: start, champion, twins, chosen; of two files, the other's name.")
    lifts: dict[str, Interval] = Field(
        default_factory=dict, description="By twin: win rate against the start minus the twin's, paired by prompt."
    )
    golden: list[str] = Field(default_factory=list, description="Golden sources among the groups.")
