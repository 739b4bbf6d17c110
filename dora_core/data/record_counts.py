"""Counts of records for people: sources, splits, preferences, ties, missing rewards, lengths.

The preview, the dry run, a run's artifact and the page count with this, so that they agree.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from pydantic import Field

from dora_core.data.records import Record
from dora_core.strict_model import StrictModel

UNKNOWN = "(unknown)"
"""Name of a null source in counts; the parentheses distinguish it from real names."""


class Lengths(StrictModel):
    """Quantiles of text lengths, in characters."""

    p05: int = 0
    median: int = 0
    p95: int = 0
    longest: int = 0


class SourceCounts(StrictModel):
    """Responses of one source."""

    responses: int = 0
    measured: int = Field(0, description="Responses with a reward.")
    preferred: int = Field(0, description="Preferences that its response wins.")
    beaten: int = Field(0, description="Preferences that its response loses.")
    among: int = Field(0, description="Preferences between two of its responses.")


class RecordCounts(StrictModel):
    """See the module docstring. A preference is a pair of responses of one record with different rewards."""

    records: int = 0
    responses: int = 0
    sources: dict[str, SourceCounts] = Field(default_factory=dict)
    splits: dict[str, int] = Field(default_factory=dict, description="Records by split.")
    preferences: dict[str, int] = Field(default_factory=dict, description="Preferences by split.")
    ties: int = Field(0, description="Records without a preference: all measured rewards are equal.")
    tied_pairs: int = Field(0, description="Pairs of responses with equal rewards.")
    unmeasured: int = Field(0, description="Records of several responses with fewer than two rewards.")
    unmeasured_responses: int = Field(0, description="Responses without a reward.")
    approved: int = Field(0, description="Single responses that were approved.")
    disapproved: int = Field(0, description="Single responses that were not.")
    prompt_chars: Lengths = Lengths()
    response_chars: Lengths = Lengths()


class RecordCounter:
    """Counts records one by one; 8 bytes a text."""

    def __init__(self) -> None:
        self._sources: dict[str, Counter[str]] = {}
        self._splits: Counter[str] = Counter()
        self._preferences: Counter[str] = Counter()
        self._others: Counter[str] = Counter()
        self._prompts, self._responses = array("q"), array("q")

    def add(self, record: Record, split: str) -> None:
        """Count one record of ``split``."""
        self._splits[split] += 1
        self._prompts.append(sum(len(message["content"]) for message in record.prompt))
        self._responses.extend(map(len, record.responses))
        names = [source or UNKNOWN for source in record.sources]
        for name, reward in zip(names, record.rewards, strict=True):
            tally = self._sources.setdefault(name, Counter())
            tally["responses"] += 1
            tally["measured"] += reward is not None
            self._others["unmeasured_responses"] += reward is None
        self._others["ties"] += is_tie(record.rewards)
        self._others["unmeasured"] += is_unmeasured(record.rewards)
        if len(record.responses) == 1 and record.rewards[0] is not None:
            self._others["approved" if record.rewards[0] > 0 else "disapproved"] += 1
        for i, j in combinations(range(len(names)), 2):
            one, other = record.rewards[i], record.rewards[j]
            if one is None or other is None:
                continue
            if one == other:
                self._others["tied_pairs"] += 1
                continue
            winner, loser = (i, j) if one > other else (j, i)
            self._preferences[split] += 1
            self._sources[names[winner]]["preferred"] += 1
            self._sources[names[loser]]["beaten"] += 1
            if names[winner] == names[loser]:
                self._sources[names[winner]]["among"] += 1

    def counts(self) -> RecordCounts:
        """The counts so far; sources by number of responses."""
        ordered = sorted(self._sources.items(), key=lambda item: (-item[1]["responses"], item[0]))
        return RecordCounts(
            records=self._splits.total(),
            responses=len(self._responses),
            sources={name: SourceCounts(**tally) for name, tally in ordered},
            splits=dict(sorted(self._splits.items())),
            preferences=dict(sorted(self._preferences.items())),
            **self._others,
            prompt_chars=lengths(self._prompts),
            response_chars=lengths(self._responses),
        )


def is_tie(rewards: Sequence[float | None]) -> bool:
    """Whether the responses of a record are measured and none is preferred."""
    measured = [reward for reward in rewards if reward is not None]
    return len(measured) > 1 and min(measured) == max(measured)


def is_unmeasured(rewards: Sequence[float | None]) -> bool:
    """Whether a record of several responses has too few rewards to compare any two."""
    return len(rewards) > 1 and sum(reward is not None for reward in rewards) < 2


def lengths(values: Sequence[int]) -> Lengths:
    """Quantiles of ``values`` (each one of them); zeros if there are none."""
    if not values:
        return Lengths()
    ordered = sorted(values)
    p05, median, p95 = (ordered[int(share * (len(ordered) - 1))] for share in (0.05, 0.5, 0.95))
    return Lengths(p05=p05, median=median, p95=p95, longest=ordered[-1])
