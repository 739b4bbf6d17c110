"""Facts of the stage ``ingest``: counts by input, source and split, mappings, and suspicious findings.

Fields that results of earlier releases do not have are null or empty there.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dora_core.data.conversations import Conversation
from dora_core.strict_model import StrictModel
from tasks.runtime.facts import Facts as BaseFacts


class Splits(StrictModel):
    """Records by split."""

    train: int
    eval: int


class SourceFacts(StrictModel):
    """Responses of one source."""

    responses: int
    share: float = Field(description="Of all responses.")
    mean_chars: float
    measured_rewards: int = Field(description="Responses with a reward.")


class MappingFacts(StrictModel):
    """Files of an input with the same columns, and how they are read."""

    files: list[str] = Field(description="At most 20.")
    file_count: int
    preset: str | None = Field(description="Null: none.")
    recognised: bool = Field(description="The preset was found by the schema.")
    shape: str
    adapter: str = Field(description="Mapping of the preset and the configuration, as YAML.")
    used: list[str] = Field(description="Columns.")
    carried: list[str]
    ignored: list[str]
    unread: list[str] = Field(description="Parts of used columns that nothing reads.")


class InputFacts(StrictModel):
    """One input."""

    place: str = Field(description="Key of the configuration.")
    path: str
    mappings: list[MappingFacts]
    rows: int = Field(description="Of the files.")
    records: int = Field(description="Good records that are new, before `weight` and `repeat`.")
    bad: int
    duplicates: int = Field(description="Records that an earlier one equals; left out.")
    renamed: int = Field(description="Records whose id an earlier input has; they got another one.")
    ties: int = Field(description="Records without preference: all measured rewards are equal.")
    unmeasured: int = Field(description="Records of several responses with fewer than two rewards.")
    splits: Splits = Field(description="Rows of the table, copies included.")
    split_given: int = Field(description="Records with a split in the data.")
    overlapping: int = Field(0, description="Training records of held-out prompts: left out, trusted ones held out (`split_overlap`).")
    not_selected: int = Field(description="Records beyond `max_rows`.")
    weighted_out: int = Field(description="Training records left out by a `weight` below 1.")
    copies: int = Field(description="Further copies by `weight` and `repeat`.")
    notes: dict[str, int] = Field(description="Parts of rows that were left out or decided.")
    file_notes: list[str] = Field(default_factory=list, description="Choices made when the files were opened, such as the split read.")


class ExampleFacts(StrictModel):
    """A row by its place."""

    file: str
    row: int = Field(description="From 0.")


class FindingFacts(StrictModel):
    """A suspicious finding (``dora_core/data/suspicion``)."""

    rule: str
    level: Literal["refuse", "note"]
    count: int
    message: str
    hint: str
    examples: list[ExampleFacts]


class BadRowFacts(StrictModel):
    """The first bad row of a reason, in words."""

    kind: str = Field(description="train, eval or golden.")
    reason: str
    file: str
    row: int = Field(description="From 0.")
    text: str = Field(description="Field, what was found, next step.")


class Facts(BaseFacts):
    """Facts of the stage ``ingest``."""

    rows_in: int
    rows_bad: int
    golden_rows: int = Field(description="Good rows of data.golden.")
    bad_by_reason: dict[str, int]
    repeated_responses: int | None = Field(None, description="Responses that their list has twice; absent before that was counted.")
    records: Splits
    sources: dict[str, SourceFacts]
    fingerprint: str = Field(description="sha256 over kind, id and content of every row of the tables, in order.")
    inputs: list[InputFacts] = Field(default_factory=list, description="In the order of the configuration.")
    conversations: list[Conversation] = Field(default_factory=list, description="Shapes of prompts; absent before they were counted.")
    findings: list[FindingFacts] = Field(default_factory=list, description="Suspicious signs in the data as a whole.")
    first_bad: list[BadRowFacts] = Field(default_factory=list, description="One per kind and reason.")
