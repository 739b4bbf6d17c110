"""Configuration of the data: inputs, how their rows become records, mixing, splits, trusted sources, and the tolerated faults.

An input (:class:`DataSource`) is a place and an :class:`~dora_core.config.adapter.Adapter`. All of it is part of the digest of ``ingest``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from dora_core.config.adapter import Adapter
from dora_core.config.goals import Goal
from dora_core.data.formats import AUTO, FORMATS
from dora_core.strict_model import NAME_PATTERN, REVISION_PATTERN, StrictModel, is_unset

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[AUTO, *FORMATS]
_PLACES = ", ".join(format.noun + (f" ({', '.join(format.suffixes)})" if format.suffixes else "") for format in FORMATS.values())


class Columns(StrictModel):
    """Column mapping of a file of prompts or responses. ``None``: use the canonical name where the column exists."""

    id: str | None = Field(None, description="Row id; without one a row gets a digest of its content.")
    prompt: str | None = Field(None, description="Prompt: a string or a list of {role, content} messages.")
    chosen: str | None = Field(None, description="Pairwise form: the preferred response (string or messages).")
    rejected: str | None = Field(None, description="Pairwise form: the other response.")
    chosen_source: str | None = Field(None, description="Pairwise form: source of the preferred response.")
    rejected_source: str | None = Field(None, description="Pairwise form: source of the other response.")
    responses: str | None = Field(None, description="Listwise form: list of responses.")
    rewards: str | None = Field(None, description="Listwise form: list of rewards, null = not measured.")
    ranks: str | None = Field(None, description="Listwise form: list of ranks, 1 = best; used where rewards are absent.")
    sources: str | None = Field(None, description="Listwise form: list of source names.")
    task: str | None = Field(None, description="Kind of prompt, e.g. `math`: results are then also given per task.")
    response: str | None = Field(None, description="Golden reference data: the single trusted response.")


FilePath = Annotated[str, Field(min_length=1)]
Patterns = FilePath | list[FilePath]


class DataSource(Adapter):
    """One input: files by path or glob, a folder, a saved ``datasets`` directory or a dataset name; and how its rows become records."""

    path: FilePath | Annotated[list[FilePath], Field(min_length=1)] = Field(
        description=f"{_PLACES}, folder of files, glob (`*`, `**`, `?`, `[..]`, `{{a,b}}`) or dataset name; or a list of these."
    )
    format: FormatName = Field(AUTO, description="auto: by the content of the path.")
    split: str = Field(
        "train",
        min_length=1,
        description="Split, slice (`train[:10%]`, `train[10:20]`) or sum (`train+validation`). Without splits, all rows are `train`.",
    )
    subset: str | None = Field(None, min_length=1, exclude_if=is_unset, description="Subset (configuration) of a dataset with several.")
    data_dir: str | None = Field(None, min_length=1, exclude_if=is_unset, description="Folder below the path, or inside a dataset name.")
    data_files: Patterns | dict[str, Patterns] | None = Field(
        None, exclude_if=is_unset, description="Files below the path: a glob, a list, or one of these per split."
    )
    revision: str | None = Field(None, pattern=REVISION_PATTERN, description="Pinned commit (40 hex digits) of a dataset name.")
    query: str | None = Field(None, min_length=1, exclude_if=is_unset, description="SQL query for a SQLite database with several tables.")
    source: str | None = Field(None, pattern=NAME_PATTERN, description="Source name for rows without one.")
    weight: float = Field(
        1.0, gt=0, le=100, description="Expected copies of each training record; below 1 a share of them, chosen by a hash of the content."
    )
    repeat: int = Field(1, ge=1, le=100, description="Copies of each training record; multiplies `weight`.")
    max_rows: int | None = Field(None, ge=1, description="At most this many records of the input, chosen by a hash of the content.")

    @property
    def paths(self) -> list[str]:
        """``path`` as a list."""
        return [self.path] if isinstance(self.path, str) else self.path

    @property
    def shown(self) -> str:
        """The path for messages: ``a.jsonl``, or ``a.jsonl + 2 more``."""
        first, *more = self.paths
        return f"{first} + {len(more)} more" if more else first

    @property
    def choice(self) -> dict[str, Any]:
        """The read options that choose among the rows of the path and are set; empty for all rows."""
        split = None if self.split == "train" else self.split
        names = ("subset", "data_dir", "data_files", "query")
        chosen: dict[str, Any] = {"split": split} | {name: getattr(self, name) for name in names}
        return {name: value for name, value in chosen.items() if value is not None}

    @property
    def adapter(self) -> Adapter:
        """How the rows become records, without the place and the mixing."""
        own = self.model_dump(exclude_unset=True)
        return Adapter.model_validate({name: value for name, value in own.items() if name in Adapter.model_fields})


class DataConfig(StrictModel):
    """Training data: inputs, trusted sources, and the tolerated share of bad rows."""

    train: list[DataSource] = Field(min_length=1, description="Preference data: pairs, lists, ratings, or approvals of single responses.")
    eval: list[DataSource] = Field(
        default_factory=list,
        description="Preference data held out for evaluation. With it, no record of `train` is held out unless its split column says so.",
    )
    golden: list[DataSource] = Field(
        default_factory=list, description="Extra trusted reference (prompt, response); empty: the golden sources of the mixture alone."
    )
    golden_sources: list[str] = Field(
        default=["human"], min_length=1, description="Sources that are trusted; a trailing * matches a prefix."
    )
    sources: list[str] | None = Field(None, description="Allowed source names; a row with another one is quarantined. null allows any.")
    holdout_fraction: float = Field(
        0.1,
        ge=0.01,
        le=0.5,
        description="Share of prompts kept for evaluation, chosen by a hash of the prompt; unused where the data says it.",
    )
    split_by: Literal["prompt", "question"] = Field(
        "prompt",
        exclude_if=lambda value: value == "prompt",
        description="What stays in one split: equal prompts, or also those with the same first user turn (other system message, white "
        "space, Unicode form, or a longer conversation).",
    )
    split_overlap: Literal["drop_from_train", "refuse", "allow"] = Field(
        "drop_from_train",
        description="Training records with a prompt that is also held out, where the data gives the split: left out of training and "
        "counted, a reason to refuse the data, or trained on (evaluation then measures memory). A split by hash has none.",
    )
    max_bad_fraction: float = Field(0.02, ge=0.0, le=1.0, description="Refuse the run if more than this share of rows is bad.")
    max_text_bytes: int = Field(200_000, ge=256, le=50_000_000, description="A prompt or response longer than this is bad.")
    max_responses: int = Field(16, ge=2, le=256, description="A row with more responses than this is bad.")
    tools: Literal["refuse", "keep"] = Field(
        "refuse", description="`messages.tools` of every input that does not set it: tool calls and definitions in prompts."
    )
    decontaminate: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="Evaluation files; a training record that shares 13 words in a row with one of them refuses the run.",
    )
    goal: Goal | None = Field(
        None, exclude_if=is_unset, description="Reward-conditioned prompts: every prompt asks for a response of a certain reward."
    )
    accept: list[str] = Field(
        default_factory=list, description="Suspicion rules that are known and accepted: a finding that refuses the run becomes a note."
    )

    @model_validator(mode="before")
    @classmethod
    def _tools_of_inputs(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("tools") != "keep":
            return value
        inputs = {name: value[name] for name in ("train", "eval", "golden") if isinstance(value.get(name), list)}
        return value | {name: [_with_tools(item) for item in items] for name, items in inputs.items()}


def _with_tools(item: Any) -> Any:
    """An input with ``messages.tools: keep`` unless it sets that key."""
    if isinstance(item, DataSource):
        return item if "tools" in item.messages.model_fields_set else item.evolve(messages=item.messages.evolve(tools="keep"))
    if not isinstance(item, dict) or not isinstance(messages := item.get("messages", {}), dict):
        return item
    return item | {"messages": {"tools": "keep"} | messages}
