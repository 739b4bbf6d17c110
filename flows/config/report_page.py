"""Settings of a run's page. They change no result and no digest."""

from __future__ import annotations

from pydantic import Field

from dora_core.strict_model import StrictModel


class ReportConfig(StrictModel):
    """What the page of a run shows besides numbers and names."""

    prompts: int = Field(
        0,
        ge=0,
        le=50,
        description="Held-out prompts with the responses of start and policy and the chosen one, in full; 0 = the page holds no text of "
        "the data and may leave the store.",
    )
