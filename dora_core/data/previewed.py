"""Models of a preview: one input, a record, a bad row, and all inputs of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dora_core.data.acceptance import BadRow
from dora_core.data.record_counts import RecordCounts
from dora_core.data.records import Message
from dora_core.data.response_turns import join_turns
from dora_core.strict_model import StrictModel, is_empty

if TYPE_CHECKING:
    from dora_core.data.suspicion import Finding


class ResponseShown(StrictModel):
    """One response of a record, with its texts.

    Attributes:
        text: the response, or the transcript of one of several turns.
        turns: messages of a response of several turns; empty for others.
    """

    text: str
    reward: float | None
    source: str | None
    turns: list[Message] = Field(default_factory=list, exclude_if=is_empty)

    @property
    def response(self) -> str:
        """The response as the record holds it."""
        return join_turns(self.turns) if self.turns else self.text


class RecordShown(StrictModel):
    """A record as it was understood, and the row that it is from."""

    file: str
    row: int
    record_id: str
    split: str
    kind: str
    prompt: list[Message]
    responses: list[ResponseShown]
    extra: str | None = Field(None, description="Carried columns, as JSON.")
    label_probability: float | None = Field(None, description="Probability that the order of the rewards is right; null: as 1.")


class ColumnUse(StrictModel):
    """What becomes of a column, or of a part of one."""

    column: str
    use: Literal["used", "carried", "ignored", "unread"]
    why: str


class InputPreview(StrictModel):
    """One input: its reader, its mapping, and counts of the rows that were read."""

    place: str = Field(description="Key in the configuration.")
    path: str
    content: str = Field(description="train, eval or golden.")
    files: int = 0
    names: list[str] = Field(default_factory=list, description="The first files.")
    reader: str = Field("", description="Name of the format.")
    preset: str | None = None
    recognised: bool = Field(False, description="The preset was found by the schema (`preset: auto`).")
    shape: str = ""
    mapping: str = Field("", description="The mapping in YAML that the preset and the written keys expand to.")
    columns: list[ColumnUse] = Field(default_factory=list)
    rows: int = Field(0, description="Rows that were read.")
    complete: bool = Field(True, description="Whether that is all of them.")
    bad: int = 0
    bad_by_reason: dict[str, int] = Field(default_factory=dict)
    duplicates: int = Field(0, description="Rows without an id that repeat an earlier one; left out.")
    split_given: int = Field(0, description="Records whose split the data says.")
    notes: list[str] = Field(default_factory=list, description="What was left out or decided, with counts.")
    counts: RecordCounts = RecordCounts()
    golden: list[str] = Field(default_factory=list, description="Sources of this input that are trusted.")
    shown: list[RecordShown] = Field(default_factory=list)
    first_bad: BadRow | None = None
    refused: str = Field("", description="Why the input cannot be read at all.")
    hint: str = ""


class Estimate(StrictModel):
    """Whether the calibration factors h can be estimated from this data for the objective."""

    needed: bool
    possible: bool
    why: str


class FindingShown(StrictModel):
    """A finding of a suspicion rule, see :mod:`dora_core.data.suspicion`."""

    rule: str
    level: str
    count: int
    text: str
    hint: str

    @classmethod
    def of(cls, finding: Finding) -> FindingShown:
        return cls(rule=finding.rule, level=finding.level, count=finding.count, text=finding.text(), hint=finding.hint)


class Preview(StrictModel):
    """All inputs of a configuration."""

    inputs: list[InputPreview]
    total: RecordCounts = Field(description="Of train and eval.")
    factors: Estimate
    findings: list[FindingShown] = Field(default_factory=list, description="Of the suspicion rules, notes included.")
    refusals: list[str] = Field(description="Reasons for which a run would refuse the data.")
    warnings: list[str]

    @property
    def accepted(self) -> bool:
        """Whether a run would accept the data."""
        return not self.refusals
