"""Facts of a stage: the typed details of its result, for figures, pages and later stages.

``result.json`` holds them under ``facts``, as :meth:`Facts.dump` writes them.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ConfigDict, Field

from dora_core.strict_model import StrictModel

F = TypeVar("F", bound="Facts")

Quantiles = dict[str, float]
"""Quantiles of a sample: ``{"0.05": …, "0.25": …, "0.5": …, "0.75": …, "0.95": …}``."""


class Stop(StrictModel):
    """Reason of a stage for ending the run, in one sentence, and the next step."""

    message: str
    hint: str


class Facts(StrictModel):
    """Base of every stage's facts. No prompts, no responses.

    A new field of a stage's facts needs a default, so that results of earlier releases stay readable.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")  # a NaN is refused when the result is written, not hidden as null

    warnings: list[str] = Field(default_factory=list, description="One sentence each, for people; also `notes` of the run's manifest.")
    stop: Stop | None = Field(None, description="Ends the run; what is finished is kept.")

    def dump(self) -> dict[str, Any]:
        """Return the JSON form. Unset fields are left out, so that parsing and dumping a stored result changes nothing."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class AnyFacts(Facts):
    """Facts without a specific model (toy stages of tests)."""

    model_config = ConfigDict(extra="allow")


class RequestFacts(Facts):
    """Statistics of the requests to a served model (``tasks/runtime/chat_requests.py``); empty where no server is used."""

    requests: int = Field(0, description="Sent in this attempt, retries included.")
    retries: int = 0
    reused: int = Field(0, description="Answers of earlier attempts.")
    answers_per_second: float | None = Field(None, description="Null where no request was sent.")
    without_text: dict[str, int] = Field(default_factory=dict, description="Answers without text, by the server's finish reason.")
    origins: dict[str, int] = Field(default_factory=dict, description="Answers by server: address, model, version where it is told.")


class ScoringFacts(Facts):
    """How many rows were scored now, how many values came from the row cache
    (``tasks/runtime/score_cache.py``), and the throughput."""

    scored_rows: int
    reused_rows: int
    rows_per_second: float | None = Field(description="Of new rows; null where there are none.")
